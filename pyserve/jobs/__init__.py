"""Jobs: long work in processes of its own, told as one log of events.

events.py      what happens in a job, as typed payloads that are stored as JSON
records.py     a job as the store tells it: state, progress, result, error
database.py    the SQLite file: schema, versions, transactions
store.py       jobs and their logs; who may write what when
runner.py      starts workers: local processes here, other machines elsewhere
scheduler.py   the queue, cancel, resume, recovery, drain, watchers
data_lock.py   one server per data folder
lr_from.py     taking the learning rate that a range test has found
paths.py       where a job's files lie; sentences without the server's folders
worker/        a job's own process, and the only room here that loads torch
"""
