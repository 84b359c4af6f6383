from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pyserve import models
from pyserve.errors import InvalidArgumentError, NotFoundError
from pyserve.models import weights as weights_module
from tests.models.support import model_with_statistics


@pytest.fixture
def state() -> dict[str, Tensor]:
    """The weights of a small network with 7 classes."""
    return dict(model_with_statistics("smallnet", 7).state_dict())


def load(model: nn.Module, source: str, root: Path) -> models.WeightsReport:
    return models.load_weights(model, source, roots=[root], cache_dir=root / "cache")


def equal(model: nn.Module, state: dict[str, Tensor], but: str = "-") -> bool:
    own = model.state_dict()
    return all(torch.equal(own[key], value) for key, value in state.items() if not key.startswith(but))


@pytest.mark.parametrize("name", ["w.pth", "w.pt", "w.th", "w.safetensors"])
def test_every_kind_of_file(name: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    (save_file if name.endswith("safetensors") else torch.save)(state, tmp_path / name)
    for source in (name, str(tmp_path / name), f"./{name}"):
        model = models.create_model("smallnet", 7)
        report = load(model, source, tmp_path)
        assert equal(model, state)
        assert report == models.WeightsReport(source, len(state), False, "fc")
    assert str(report) == f"{len(state)} tensors, head 'fc' included"


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_wrappers_and_prefixes(wrapper: str, prefix: str, state: dict[str, Tensor], tmp_path: Path) -> None:
    file = {wrapper: {prefix + key: value for key, value in state.items()}, "epoch": 3}
    torch.save(file, tmp_path / "w.pth")
    model = models.create_model("smallnet", 7)
    load(model, "w.pth", tmp_path)
    assert equal(model, state)


def test_a_head_for_other_classes_is_new(state: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(state, tmp_path / "w.pth")
    model = models.create_model("smallnet", 3)
    head = model.fc.weight.detach().clone()
    report = load(model, "w.pth", tmp_path)
    assert str(report) == f"{len(state) - 2} tensors, new head 'fc'"
    assert equal(model, state, but="fc.")
    assert torch.equal(model.fc.weight, head)


def test_old_files_without_the_batch_counter(state: dict[str, Tensor], tmp_path: Path) -> None:
    old = {key: value for key, value in state.items() if "num_batches" not in key}
    torch.save(old, tmp_path / "w.pth")
    model = models.create_model("smallnet", 7)
    load(model, "w.pth", tmp_path)
    assert equal(model, old)


def refused(state: object, tmp_path: Path, architecture: str = "smallnet") -> str:
    """The sentence; the model is as it was."""
    torch.save(state, tmp_path / "w.pth")
    model = models.create_model(architecture, 7)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(InvalidArgumentError) as error:
        load(model, "w.pth", tmp_path)
    assert equal(model, before)
    assert error.value.fields[0].field == "weights"
    return error.value.message


def test_other_architectures_are_told_by_their_first_keys(state: dict[str, Tensor], tmp_path: Path) -> None:
    told = refused(state, tmp_path, "resnet20")
    assert "'w.pth', expected weights of this architecture; conv1.weight, bn1.weight, bn1.bias and " in told
    assert "missing; stem.0.weight, stem.1.weight, stem.1.bias and " in told
    smaller = {**state, "stem.0.weight": torch.zeros(16, 3, 3, 3)}
    assert "stem.0.weight is 16×3×3×3 instead of 32×3×3×3 of other sizes" in refused(smaller, tmp_path)
    other_features = {**state, "fc.weight": torch.zeros(7, 5)}
    assert "fc.weight is 7×5 instead of 7×192" in refused(other_features, tmp_path)


def test_numbers_that_are_none(state: dict[str, Tensor], tmp_path: Path) -> None:
    state["stem.1.running_var"][3] = float("nan")
    assert "expected finite numbers; stem.1.running_var has others" in refused(state, tmp_path)


@pytest.mark.parametrize("content", [{}, [1, 2], {"a": 1}, {"state_dict": {}}, 3.0])
def test_files_of_something_else(content: object, tmp_path: Path) -> None:
    assert "expected a file of named tensors" in refused(content, tmp_path)


class Trap:
    """What a hostile file would run on loading."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("sprung",)


@pytest.mark.filterwarnings("ignore")
def test_files_that_would_run_code_do_not(
    state: dict[str, Tensor], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert "expected a readable file of nothing but tensors" in refused({**state, "x": Trap()}, tmp_path)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("content", [b"", b"nothing like weights", b"\x00" * 100])
def test_damaged_files(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidArgumentError, match="expected a readable file of nothing but tensors"):
        load(models.create_model("smallnet", 7), name, tmp_path)


def test_truncated_files(state: dict[str, Tensor], tmp_path: Path) -> None:
    for save, name in ((torch.save, "w.pth"), (save_file, "w.safetensors")):
        save(state, tmp_path / name)
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:-1000])
        with pytest.raises(InvalidArgumentError, match="expected a readable file"):
            load(models.create_model("smallnet", 7), name, tmp_path)


def test_files_of_other_types(tmp_path: Path) -> None:
    (tmp_path / "w.txt").write_text("hello")
    with pytest.raises(InvalidArgumentError, match=r"expected a file of type \.pth"):
        load(models.create_model("smallnet", 7), "w.txt", tmp_path)


def test_only_files_inside_the_roots(state: dict[str, Tensor], tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside"
    for folder in (inside, outside, inside / "deep", tmp_path / "inside-too"):
        folder.mkdir()
    torch.save(state, outside / "w.pth")
    torch.save(state, inside / "deep" / "own.pth")
    torch.save(state, tmp_path / "inside-too" / "w.pth")
    (inside / "link.pth").symlink_to(outside / "w.pth")
    (inside / "good-link.pth").symlink_to(inside / "deep" / "own.pth")
    (inside / "loop.pth").symlink_to(inside / "loop.pth")
    bad = ["../outside/w.pth", str(outside / "w.pth"), "link.pth", "loop.pth", "deep", "", "..", "a\0.pth"]
    for source in [*bad, "../inside-too/w.pth", "x" * 5000, "/etc/passwd"]:
        with pytest.raises(NotFoundError, match="expected 'imagenet' or a file under the weights_roots"):
            models.find_weights(source, [inside])
    own = (inside / "deep" / "own.pth").resolve()
    for source in ("deep/own.pth", "good-link.pth", str(own), "deep/../deep/own.pth"):
        assert models.find_weights(source, [outside, inside]) == own


def test_what_there_is_is_told(state: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="there are none, or weights_roots is not set"):
        models.find_weights("w.pth", [])
    for k in range(12):
        (tmp_path / f"w{k:02}.pth").touch()
    (tmp_path / "README.md").touch()
    with pytest.raises(NotFoundError, match=r"there are: w00\.pth, .*w09\.pth and 2 more$"):
        models.find_weights("w.pth", [tmp_path, tmp_path / "gone"])


def test_imagenet_weights_are_downloaded_under_a_new_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretrained = model_with_statistics("resnet18", 1000).state_dict()
    torch.save(pretrained, tmp_path / "resnet18-f37072fd.pth")
    asked: list[tuple[str, Path]] = []

    def download(url: str, folder: Path) -> Path:
        asked.append((url, folder))
        return tmp_path / "resnet18-f37072fd.pth"

    monkeypatch.setattr(weights_module, "download", download)
    model = models.create_model("resnet18", 2)
    report = models.load_weights(model, "imagenet", roots=[], cache_dir=tmp_path / "cache")
    assert asked == [("https://download.pytorch.org/models/resnet18-f37072fd.pth", tmp_path / "cache" / "weights")]
    assert report.new_head
    assert equal(model, dict(pretrained), but="fc.")


def test_networks_without_imagenet_weights(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="smallnet has no ImageNet weights, only resnet18, "):
        load(models.create_model("smallnet", 2), "imagenet", tmp_path)


def test_every_url_of_imagenet_weights_tells_its_hash() -> None:
    from pyserve._torchvision import torchvision

    for name, architecture in models.architectures().items():
        if architecture.imagenet:
            url = torchvision().models.get_model_weights(name)[architecture.imagenet].url
            assert url.startswith("https://")
            assert len(url.rpartition("-")[2].removesuffix(".pth")) >= 8
