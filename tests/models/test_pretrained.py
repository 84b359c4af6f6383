"""The published weights score what their authors published, on our layers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image

from pyserve import models
from pyserve.kernels import fuse
from tests import cifar10


def normalised(images: torch.Tensor, name: str) -> torch.Tensor:
    """uint8 [N, H, W, 3] to what the network takes."""
    architecture = models.get_architecture(name)
    mean, std = (torch.tensor(v).reshape(3, 1, 1) for v in (architecture.mean, architecture.std))
    return (images.permute(0, 3, 1, 2).float() / 255 - mean) / std


# By how many of CIFAR-10's 10,000 test pictures rounding may change the score.
DTYPES = pytest.mark.parametrize(("dtype", "changed"), [(torch.float32, 2), (torch.bfloat16, 10)], ids=str)


@DTYPES
@pytest.mark.parametrize(
    ("name", "file", "published"),
    [("resnet20", "resnet20-12fca82f.th", 9173), ("resnet56", "resnet56-4bfd9763.th", 9339)],
)
def test_cifar_resnets_score_as_published(
    name: str, file: str, published: int, dtype: torch.dtype, changed: int, test_data: Path
) -> None:
    model = models.create_model(name, 10)
    models.load_weights(model, file, roots=[test_data / "weights"], cache_dir=test_data)
    fused = fuse(model, inference=True).to(dtype)
    images, labels = (torch.from_numpy(array) for array in cifar10.read(test_data, "test"))
    assert len(labels) == 10_000
    with torch.inference_mode():
        right = sum(
            int((fused(normalised(x, name).to(dtype)).argmax(1) == y).sum())
            for x, y in zip(images.split(250), labels.split(250), strict=True)
        )
    assert abs(right - published) <= changed


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_mobilenet_recognises_the_animals(dtype: torch.dtype, test_data: Path) -> None:
    model = models.create_model("mobilenet_v2", 1000)
    file = "mobilenet_v2_imagenet1k_from_coral_ptq.pth"
    models.load_weights(model, file, roots=[test_data / "weights"], cache_dir=test_data)
    fused = fuse(model, inference=True).to(dtype)
    labels = (test_data / "weights" / "imagenet_labels.txt").read_text().splitlines()[1:]
    cats = set(range(281, 286))  # tabby to Egyptian cat
    dogs = set(range(151, 269))
    assert "tabby" in labels[281]
    assert "Chihuahua" in labels[151]
    right = 0
    for kind, classes in (("cat", cats), ("dog", dogs)):
        for path in sorted((test_data / "cats-dogs" / "valid" / kind).iterdir())[:20]:
            with Image.open(path) as image:
                picture = torch.tensor(list(image.convert("RGB").resize((160, 160)).tobytes()), dtype=torch.uint8)
            with torch.inference_mode():
                x = normalised(picture.reshape(1, 160, 160, 3), "mobilenet_v2").to(dtype)
                probabilities = fused(x).float().softmax(1)[0]
            cat, dog = (float(probabilities[list(c)].sum()) for c in (cats, dogs))
            right += (cat > dog) == (classes is cats)
    assert right >= 34  # of 40, in pictures pressed square
