"""What a dataset consists of: classes, pictures, split. One JSON file beside the pictures, read without torch."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from pydantic import TypeAdapter, ValidationError

from pyserve.errors import DataLossError, InvalidArgumentError

Part = Literal["train", "valid"]


@dataclass(frozen=True)
class Item:
    """A picture.

    `path` is relative to the manifest's root, with "/" between folders. `sha256` is that of the encoded file; ""
    where it is not known, and then nobody notices that the file has changed.
    """

    path: str
    label: int  # index of its class
    part: Part
    sha256: str = ""


@dataclass(frozen=True)
class BadImage:
    """A picture that was left out, and why."""

    path: str
    reason: str


@dataclass(frozen=True)
class Correction:
    """A label that was corrected; `new` is "" where the picture was taken out."""

    path: str
    old: str
    new: str


@dataclass(frozen=True)
class Origin:
    """What a corrected version of a dataset was made from, and how it differs."""

    dataset: str  # "datasets/{id}"
    digest: str  # of that dataset
    version: int  # of that dataset
    corrections: tuple[Correction, ...]


@dataclass(frozen=True)
class Manifest:
    """A dataset: immutable, as it was when it was made.

    `root` is the absolute folder of the pictures. Items of a class stand together, in the order of their paths.
    """

    dataset_id: str
    root: str
    classes: tuple[str, ...]
    items: tuple[Item, ...]
    bad_images: tuple[BadImage, ...]
    has_own_split: bool
    size_bytes: int  # of all items' encoded files
    digest: str  # see `digest_of`
    create_time: float  # seconds since the epoch
    origin: Origin | None = None  # of one that was made by correcting labels

    def item(self, path: str, field: str) -> Item:
        """The picture at a path; the error blames `field` of a request."""
        for item in self.items:
            if item.path == path:
                return item
        some = f", such as {self.items[0].path}" if self.items else ""
        raise InvalidArgumentError.field(field, path, f"a picture of {self.name}{some}")

    @property
    def version(self) -> int:
        """1, and 1 more for each time that labels were corrected."""
        return self.origin.version + 1 if self.origin else 1

    @property
    def name(self) -> str:
        """`datasets/{id}`."""
        return f"datasets/{self.dataset_id}"

    def part_items(self, part: str) -> tuple[Item, ...]:
        """The pictures of "train" or "valid"."""
        return tuple(item for item in self.items if item.part == part)

    def save(self, path: Path) -> None:
        """Write it. A root below the file's folder is written relative to it, so that both can move together."""
        root = Path(self.root)
        if root.is_relative_to(path.parent):
            root = root.relative_to(path.parent)
        path.write_bytes(_ADAPTER.dump_json(replace(self, root=root.as_posix())))

    @classmethod
    def load(cls, path: Path, name: str) -> Manifest:
        """Read what `save` wrote.

        Args:
            name: what errors call the dataset; the server's folders stay out of them.

        Raises:
            FileNotFoundError: there is no such file.
            DataLossError: it cannot be read, or holds something else.
        """
        try:
            manifest = _ADAPTER.validate_json(path.read_bytes())
        except FileNotFoundError:
            raise
        except OSError as error:
            raise DataLossError(f"{name}: {path.name} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            fault = error.errors()[0]
            field = ".".join(str(part) for part in fault["loc"])
            raise DataLossError(f"{name}: {path.name} is damaged: {field}: {fault['msg']}") from error
        if not all(0 <= item.label < len(manifest.classes) for item in manifest.items):
            raise DataLossError(f"{name}: {path.name} is damaged: a label without a class")
        return replace(manifest, root=str(path.parent / manifest.root))


_ADAPTER = TypeAdapter(Manifest)


def digest_of(classes: Sequence[str], items: Iterable[Item]) -> str:
    """SHA-256 over paths, contents and labels of all pictures and over the split, 64 hexadecimal digits.

    Does not depend on the order of `items`.
    """
    digest = hashlib.sha256()
    for item in sorted(items, key=lambda item: item.path):
        for field in (item.path, item.sha256, classes[item.label], item.part):
            digest.update(field.encode())
            digest.update(b"\0")  # no name holds one, so no two datasets run together
    return digest.hexdigest()
