"""Pretrained weights: found by name, downloaded, read without running code, checked, and put under a new head."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyserve.errors import InvalidArgumentError, NotFoundError
from pyserve.models.download import download
from pyserve.models.groups import head_name
from pyserve.models.registry import architectures, get_architecture

SUFFIXES = (".pth", ".th", ".pt", ".safetensors")
_WRAPPERS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile


@dataclass(frozen=True)
class WeightsReport:
    """What `load_weights` did."""

    source: str
    loaded: int  # tensors
    new_head: bool  # the file's head was for other classes and was left out
    head: str  # the head's name, such as "fc"

    def __str__(self) -> str:
        head = f"new head '{self.head}'" if self.new_head else f"head '{self.head}' included"
        return f"{self.loaded} tensors, {head}"


def load_weights(model: nn.Module, source: str, *, roots: Sequence[Path], cache_dir: Path) -> WeightsReport:
    """Put pretrained weights into a model, all or (where anything is wrong) none.

    A head for another number of classes is left out: the model keeps its new one.

    Args:
        model: as `create_model` makes it.
        source: "imagenet" (torchvision's weights, downloaded once), or the name or path of a file that lies in one
            of the roots: `.safetensors`, or what `torch.save` wrote of tensors only (`.pth`, `.th`, `.pt`), also
            wrapped as {"state_dict": …} or with the prefix "module.".
        roots: folders in which weights may lie; links that lead out of them are not followed.
        cache_dir: downloads are kept in `weights` below it.

    Raises:
        NotFoundError: no such file in the roots; names the files there are.
        InvalidArgumentError: not a file of weights, of another architecture, or with values that are not finite.
        UnavailableError: the download failed.
    """
    path = _download_imagenet(model, cache_dir) if source == "imagenet" else find_weights(source, roots)
    state = _read(path, source)
    head = head_name(model)
    own = model.state_dict()
    new_head = _is_for_other_classes(state, own, head)
    if new_head:
        state = {key: value for key, value in state.items() if key not in _head_keys(head)}
    _check(state, own, source, _head_keys(head) if new_head else ())
    model.load_state_dict(state, strict=False)  # checked above; strictly it would miss a new head
    return WeightsReport(source, len(state), new_head, head)


def find_weights(source: str, roots: Sequence[Path]) -> Path:
    """The file of a name within one of the roots, all links resolved.

    Raises:
        NotFoundError: there is none.
    """
    for root in roots:
        folder = root.resolve()
        try:
            path = (folder / source).resolve()
            if path.is_relative_to(folder) and path.is_file():
                return path
        except (OSError, ValueError, RuntimeError):  # too long, a NUL in it, a loop of links: not a file of ours
            continue
    available = sorted(
        file.name
        for root in roots
        if root.is_dir()
        for file in root.iterdir()
        if _is_weights(file) and file.resolve().is_relative_to(root.resolve())
    )
    listed = ", ".join(available[:10]) + (f" and {len(available) - 10} more" if len(available) > 10 else "")
    there_are = f"there are: {listed}" if available else "there are none, or weights_roots is not set"
    raise NotFoundError.field("weights", source, f"'imagenet' or a file under the weights_roots; {there_are}")


def require_imagenet(architecture: str) -> None:
    """Refuse "imagenet" for an architecture that has no such weights.

    Raises:
        InvalidArgumentError: names those that have some.
    """
    available = [a.name for a in architectures().values() if a.imagenet]
    if architecture not in available:
        expected = f"a file: {architecture} has no ImageNet weights, only " + ", ".join(available)
        raise InvalidArgumentError.field("weights", "imagenet", expected)


def _is_weights(file: Path) -> bool:
    return file.suffix in SUFFIXES and file.is_file()


def _download_imagenet(model: nn.Module, cache_dir: Path) -> Path:
    """torchvision's file of the model's architecture."""
    from pyserve._torchvision import torchvision

    name = str(getattr(model, "architecture", type(model).__name__))
    require_imagenet(name)
    weights: Any = torchvision().models.get_model_weights(name)
    return download(weights[cast("str", get_architecture(name).imagenet)].url, cache_dir / "weights")


# ------------------------------------------------------------ reading


def _read(path: Path, source: str) -> dict[str, Tensor]:
    """The tensors of a file by name, without wrappers and prefixes."""
    if path.suffix not in SUFFIXES:
        raise InvalidArgumentError.field("weights", source, "a file of type " + ", ".join(SUFFIXES))
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: object = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file makes either reader raise nearly anything
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        expected = f"a readable file of nothing but tensors ({reason[:200]})"
        raise InvalidArgumentError.field("weights", source, expected) from error
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise InvalidArgumentError.field("weights", source, "a file of named tensors (a state dict)")
    return _without_prefix({str(key): value for key, value in state.items()})


def _without_prefix(state: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key[len(prefix) :]: value for key, value in state.items()}
    return state


# ------------------------------------------------------------ checking


def _head_keys(head: str) -> tuple[str, str]:
    return f"{head}.weight", f"{head}.bias"


def _is_for_other_classes(state: Mapping[str, Tensor], own: Mapping[str, Tensor], head: str) -> bool:
    """Whether the head in the file takes the same features to another number of classes."""
    weight, _ = _head_keys(head)
    if weight not in state or state[weight].dim() != 2:
        return False
    return state[weight].shape[1] == own[weight].shape[1] and state[weight].shape[0] != own[weight].shape[0]


def _check(state: Mapping[str, Tensor], own: Mapping[str, Tensor], source: str, left_out: tuple[str, ...]) -> None:
    """Refuse what does not fit the model, naming the first few tensors of each kind."""
    optional = (*left_out, *(key for key in own if key.endswith(".num_batches_tracked")))
    missing = [key for key in own if key not in state and key not in optional]
    unexpected = [key for key in state if key not in own]
    other = [
        f"{key} is {_sizes(value)} instead of {_sizes(own[key])}"
        for key, value in state.items()
        if key in own and value.shape != own[key].shape
    ]
    faults = {"missing": missing, "not in the network": unexpected, "of other sizes": other}
    told = "; ".join(f"{_first(names)} {kind}" for kind, names in faults.items() if names)
    if told:
        raise InvalidArgumentError.field("weights", source, f"weights of this architecture; {told}")
    broken = [key for key, value in state.items() if value.is_floating_point() and not value.isfinite().all()]
    if broken:
        raise InvalidArgumentError.field("weights", source, f"finite numbers; {_first(broken)} has others")


def _first(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def _sizes(tensor: Tensor) -> str:
    return "×".join(map(str, tensor.shape)) or "a number"
