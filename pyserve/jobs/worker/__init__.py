"""A job's own process: `python -m pyserve.jobs.worker ORDER`; the only part of `jobs` that loads torch.

process.py     being a worker: order, stop requests, the end with the server, errors as the job's end
report.py      what the work tells, as events of the job
train.py       a training, its model and its figures
find_lr.py     a learning-rate range test and its figure
artifacts.py   figures as files of the job
"""
