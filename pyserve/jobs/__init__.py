"""Jobs: long work in processes of its own, told as one log of events.

events.py      what happens in a job, as typed payloads that are stored as JSON
records.py     a job as the store tells it: state, progress, result, error
database.py    the SQLite file: schema, versions, transactions
store.py       jobs and their logs; who may write what when
runner.py      starts workers: local processes here, other machines elsewhere
scheduler.py   the queue, cancel, resume, recovery, drain, watchers
data_lock.py   one server per data folder
worker.py      a job's own process, and the only module here that loads torch
"""
