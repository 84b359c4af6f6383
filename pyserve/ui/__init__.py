"""The page, `pyserve ui`: the lesson in a browser. A client of the gRPC API like any other, on NiceGUI.

    serving.py     the web server: address, Host check, start and end
    frame.py       what every page has: header, errors as sentences, pictures
    datasets.py    /                data sets and models; upload
    dataset.py     /datasets/ID     one data set: find the learning rate, train
    job.py         /jobs/ID         one job, live
    charts.py      the curves of a job, from its events
    model.py       /models/ID       one model: predict with Grad-CAM, confusion matrix
    mistakes.py    its mistakes, and new labels for them
    kernels.py     /kernels         image kernels on a picture

No page keeps anything: jobs are logs on the server, so a reload, or a second browser, shows the same.
"""
