"""Pictures, folders of them and archives for the tests of data."""

from __future__ import annotations

import io
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pyserve.data.manifest import Item, Manifest

CLASSES = ("blue", "green", "red")


def noise(seed: int, height: int = 12, width: int = 16) -> npt.NDArray[np.uint8]:
    """uint8 [H, W, 3]."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def encoded(pixels: npt.NDArray[Any] | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """A picture's file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png(seed: int) -> bytes:
    return encoded(noise(seed))


def png_header(width: int, height: int) -> bytes:
    """A PNG of a few bytes that promises any number of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000)))


def pictures(per_class: int = 5, classes: Sequence[str] = CLASSES, prefix: str = "") -> dict[str, bytes]:
    """Path → file, one folder per class; all pictures different."""
    return {
        f"{prefix}{name}/{index}.png": png(100 * label + index + 10_000 * zlib.crc32(prefix.encode()))
        for label, name in enumerate(classes)
        for index in range(per_class)
    }


def write(root: Path, files: Mapping[str, bytes]) -> Path:
    """The files on disk; a path that ends with "/" is an empty folder."""
    for name, data in files.items():
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True)
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    return root


def zipped(files: Mapping[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(files: Mapping[str, bytes | tarfile.TarInfo], mode: str = "w", **options: Any) -> bytes:
    """A tar; a `TarInfo` in place of a file's bytes is added as it is."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, **options) as archive:  # type: ignore[call-overload]
        for name, data in files.items():
            if isinstance(data, tarfile.TarInfo):
                archive.addfile(data)
                continue
            info = tarfile.TarInfo(name)
            info.size = len(data)
            if name.endswith("/"):
                info.type = tarfile.DIRTYPE
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def tree(root: Path) -> dict[str, bytes]:
    """Path → content of all files below a folder."""
    return {p.relative_to(root).as_posix(): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def small_manifest(root: Path, counts: Mapping[str, int], *, digest: str = "d" * 64) -> Manifest:
    """Noise of two classes on disk: so many pictures of each class in each part."""
    items = []
    for label, name in enumerate(("cat", "dog")):
        for part, count in counts.items():
            for index in range(count):
                path = f"{name}/{part}-{index}.png"
                write(root, {path: png(1000 * label + 100 * len(part) + index)})
                items.append(Item(path, label, part))  # type: ignore[arg-type]
    return Manifest(
        dataset_id="pets",
        root=str(root),
        classes=("cat", "dog"),
        items=tuple(items),
        bad_images=(),
        has_own_split=False,
        size_bytes=0,
        digest=digest,
        create_time=0.0,
    )
