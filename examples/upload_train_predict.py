"""The shortest way from a folder of pictures to a prediction. Needs a running `pyserve serve`.

python examples/upload_train_predict.py ~/pictures/pets photo.jpg
"""

from __future__ import annotations

import argparse

from pyserve.client import Client

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("folder", help="folder with one sub-folder per class")
parser.add_argument("picture", help="what to predict")
parser.add_argument("--name", default="example", help="name of the dataset and of the model")
parser.add_argument("--architecture", default="resnet18")
parser.add_argument("--epochs", type=int, default=5)
options = parser.parse_args()

with Client() as client:
    dataset = client.upload_dataset(options.folder, options.name)
    common = {"dataset": dataset.name, "architecture": options.architecture}
    finder = client.wait(client.find_learning_rate(**common).name)
    print(f"learning rate: {finder.learning_rate_result.learning_rate:.1e}")
    job = client.wait(client.train(**common, lr_from=finder.name, epochs=options.epochs).name)
    print(f"{job.train_result.model}: accuracy {job.train_result.metrics['accuracy']:.1%}")
    for score in client.predict(job.train_result.model, options.picture, top_k=3).predictions[0].scores:
        print(f"{score.label}: {score.probability:.1%}")
