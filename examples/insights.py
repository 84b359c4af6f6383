"""Every look at a model that there is, on handwritten digits with planted mistakes; makes the pictures of docs/.

    python examples/insights.py --output insights                     about two minutes on two cores
    python examples/insights.py --output docs/pictures --webp         the pictures of docs/insight.md

Some digits get a wrong label and some are there twice before a server of its own gets them. It trains, finds the
mistakes, corrects them, learns on from the old weights, and looks into the network that came out.
"""

from __future__ import annotations

import argparse
import io
import random
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from demo_pictures import Pictures, digits
from demo_server import running_server
from PIL import Image
from rich.console import Console
from sklearn.datasets import load_sample_image

from pyserve.client import Client
from pyserve.v1 import common_pb2, jobs_pb2

WRONG_LABELS, COPIES = 14, 5
console = Console(highlight=False)


def main() -> None:
    """Parse the command line, and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("insights"), help="folder for the figures")
    parser.add_argument("--epochs", type=int, default=10, help="of each training")
    parser.add_argument("--webp", action="store_true", help="smaller files than PNG")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pictures = digits(folder)
        wrong = plant(pictures.folder)
        with (
            running_server(folder / "server", folder / "server.log", console) as address,
            Client(address) as client,
        ):
            Looks(client, options.output, options.epochs, webp=options.webp).run(pictures, wrong)
    console.print(f"figures and report.html are in {options.output}")


def plant(folder: Path) -> set[str]:
    """Put some digits under the next digit's label, and copies of others beside them; the paths of the former."""
    rng = random.Random(1)
    files = sorted(folder.rglob("*.png"))
    chosen = rng.sample(files, WRONG_LABELS + COPIES)
    wrong = set()
    for path in chosen[:WRONG_LABELS]:
        label = str((int(path.parent.name) + 1) % 10)
        path.rename(folder / label / f"wrong-{path.name}")
        wrong.add(f"{label}/wrong-{path.name}")
    for path in chosen[WRONG_LABELS:]:
        with Image.open(path) as picture:
            picture.resize((28, 28)).save(path.with_name(f"copy-{path.stem}.jpg"), quality=80)
    return wrong


class Looks:
    """One look after another.

    Args:
        client: of the server.
        output: where the figures go.
        epochs: of each training.
        webp: figures as WebP.
    """

    def __init__(self, client: Client, output: Path, epochs: int, *, webp: bool) -> None:
        self.client, self.output, self.epochs, self.webp = client, output, epochs, webp

    def run(self, pictures: Pictures, wrong: set[str]) -> None:
        """All of them."""
        dataset = self.client.upload_dataset(pictures.folder, "digits").name
        job = self.train(dataset, snapshots=True)
        model = job.train_result.model
        self.predictions(model)
        corrected = self.corrections(model, dataset, wrong)
        better = self.train(corrected, weights=model, freeze_batch_norm=False, learning_rate=1e-3)
        answer = self.client.compare_models(model, better.train_result.model)
        self.keep(answer.figures)
        console.print(f"learnt on: {answer.fixed} pictures became right, {answer.broken} became wrong")
        self.inside(better.train_result.model, pictures.unseen[3][0])
        self.keep(self.client.evolution(job.name, "stage2", channel_count=5).figures)
        self.lessons()
        report = self.client.report(better.name)
        (self.output / "report.html").write_bytes(report.html)

    def train(self, dataset: str, **fields: Any) -> jobs_pb2.Job:
        """A training to its end."""
        with console.status(f"trains on {dataset}"):
            job = self.client.train(
                dataset=dataset,
                architecture="smallnet",
                augment="none",
                epochs=self.epochs,
                **{"learning_rate": 3e-3, **fields},
            )
            job = self.client.wait(job.name)
        if job.state != jobs_pb2.SUCCEEDED:
            raise SystemExit(f"{job.name} is {jobs_pb2.JobState.Name(job.state)}: {job.reason}")
        console.print(f"{job.train_result.model}: {job.train_result.metrics['accuracy']:.1%} right")
        return job

    def predictions(self, model: str) -> None:
        """What it answers."""
        self.keep(self.client.confusion_matrix(model).figures)
        self.keep(self.client.top_losses(model, order="most_incorrect").figures)
        self.keep(self.client.top_losses(model, order="most_uncertain", label="8").figures)
        answer = self.client.calibration(model)
        self.keep(answer.figures)
        calibrated = self.client.calibrate(model)
        console.print(f"temperature {calibrated.temperature:.2f}: {calibrated.name}")

    def corrections(self, model: str, dataset: str, wrong: set[str]) -> str:
        """The mistakes that are found, and a version of the dataset without them."""
        issues = self.client.label_issues(model, dataset=dataset, count=24)
        self.keep(issues.figures)
        found = [item.path in wrong for item in issues.items[: len(wrong)]]
        console.print(f"{sum(found)} of {len(wrong)} planted wrong labels are among the first {len(found)}")
        copies = self.client.duplicates(model, dataset=dataset)
        self.keep(copies.figures)
        removed = [max(pair.first.path, pair.second.path) for pair in copies.pairs]
        labels = {
            item.path: item.suggested for item in issues.items if item.path in wrong and item.path not in removed
        }
        new = self.client.relabel_dataset(dataset, labels, removed=list(dict.fromkeys(removed)))
        console.print(f"{new.name}: {len(labels)} labels corrected, {len(set(removed))} copies left out")
        return new.name

    def inside(self, model: str, picture: Path) -> None:
        """What the network sees."""
        self.keep(self.client.filters(model).figures)
        self.keep(self.client.feature_maps(model, picture, layer="stage1", count=23).figures)
        for layer in ("stage1", "stage2", "stage3"):
            answer = self.client.top_patches(model, layer, channel_count=6)
            self.keep(answer.figures, prefix=f"{layer}_")
        self.keep(self.client.explain(model, picture).figures)
        self.keep(self.client.explain(model, picture, method="occlusion").figures)
        self.keep(self.client.explain(model, picture, method="deconvnet", layer="stage2").figures)

    def lessons(self) -> None:
        """Kernels on a photograph (scikit-learn's flower.jpg, by vultilion, CC BY 2.0), and approximation."""
        photo = self.output / "flower.png"
        Image.fromarray(load_sample_image("flower.jpg")).save(photo)
        self.keep(self.client.apply_kernel(photo, "outline").figures)
        self.keep(self.client.approximate().figures)
        photo.unlink()

    def keep(self, figures: Sequence[common_pb2.Figure], prefix: str = "") -> None:
        """Save the PNG form of each."""
        for figure in figures:
            if figure.media_type != "image/png":
                continue
            path = self.output / f"{prefix}{figure.name}"
            if self.webp:
                with Image.open(io.BytesIO(figure.data)) as image:
                    image.convert("RGB").save(path.with_suffix(".webp"), quality=80, method=6)
            else:
                path.write_bytes(figure.data)


if __name__ == "__main__":
    main()
