"""Decoding pictures: any common format and mode to upright RGB, hostile files refused, memory bounded.

Pillow's decoders run outside Python's lock, so threads decode at once; how many pixels they hold at once is
bounded for the whole process, whatever the number of threads.
"""

from __future__ import annotations

import hashlib
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt
from PIL import ExifTags, Image, UnidentifiedImageError

from pyserve.errors import DataError

# Not what Pillow could open beside these: EPS, for one, would run a program.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF")
_CHUNK_BYTES = 1 << 20
_PIXELS_AT_ONCE = 128_000_000  # about 1.3 GB, at up to 10 bytes a pixel while one is turned and converted
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class _PixelBudget:
    """Pixels that may be decoded at once; a single picture may exceed it, alone."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._used = 0
        self._changed = threading.Condition()

    @contextmanager
    def take(self, pixels: int) -> Iterator[None]:
        """Wait until there is room, and hold it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._used or self._used + pixels <= self._limit)
            self._used += pixels
        try:
            yield
        finally:
            with self._changed:
                self._used -= pixels
                self._changed.notify_all()


_budget = _PixelBudget(_PIXELS_AT_ONCE)


@dataclass(frozen=True)
class ReadImage:
    """A picture and the file that it came from."""

    image: Image.Image
    sha256: str
    size_bytes: int


def read_image(path: Path, *, max_pixels: int, short_side: int) -> ReadImage:
    """Decode a file as `decode_image` does, and hash it.

    Raises:
        DataError, OSError: as `decode_image` does.
    """
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
        size_bytes = file.tell()
        file.seek(0)
        image = decode_image(file, max_pixels=max_pixels, short_side=short_side)
    return ReadImage(image, digest.hexdigest(), size_bytes)


def decode_image(source: bytes | Path | BinaryIO, *, max_pixels: int, short_side: int = 0) -> Image.Image:
    """An encoded picture (JPEG, PNG, WebP, GIF, BMP, TIFF, PPM, AVIF) as an upright RGB image.

    Turned as its EXIF orientation says; the first frame of several; transparency on white; 16-bit grey as 8-bit.

    Args:
        source: the file's bytes, its path, or the open file.
        max_pixels: a larger picture is refused from its header, before it is decoded.
        short_side: pixels the caller needs. A JPEG four times as large is decoded at 1/2, 1/4 or 1/8, twice
            this size or more, which is several times as fast; 0: at full size.

    Raises:
        DataError: says why the picture cannot be used, and holds no path.
        OSError: the file of a path cannot be opened.
    """
    if isinstance(source, Path):
        with source.open("rb") as file:
            return _decode(file, max_pixels, short_side)
    return _decode(io.BytesIO(source) if isinstance(source, bytes) else source, max_pixels, short_side)


def to_square(image: Image.Image, side: int) -> npt.NDArray[np.uint8]:
    """The picture as a network's square, uint8 [3, side, side].

    The short side becomes `side` pixels, the long side loses both ends alike (bilinear with antialiasing, as the
    pretrained weights of torchvision were trained). A square of that side already is taken as it is.
    """
    width, height = image.size
    short = min(width, height)
    left, top = (width - short) / 2, (height - short) / 2
    box = (left, top, left + short, top + short)
    square = image.resize((side, side), Image.Resampling.BILINEAR, box=box)
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def _decode(file: BinaryIO, max_pixels: int, short_side: int) -> Image.Image:
    try:
        image = Image.open(file, formats=[name for name in _FORMATS if name in _known_formats()])
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Pillow's own limit, 179 million pixels, stands whatever max_pixels is
        raise DataError(f"has too many pixels, expected at most {max_pixels}") from error
    except UnidentifiedImageError as error:
        raise DataError(f"is not a picture that can be read here ({', '.join(_FORMATS)})") from error
    except Exception as error:
        raise _undecodable(error) from error
    width, height = image.size
    if width * height > max_pixels:
        raise DataError(f"has {width} × {height} pixels, expected at most {max_pixels}")
    if short_side:
        image.draft(None, (2 * short_side, 2 * short_side))
    with _budget.take(image.width * image.height):
        try:
            image.load()
            return _to_rgb(_upright(image))
        except (DataError, MemoryError):
            raise
        except Exception as error:  # decoders meet hostile bytes with nearly every exception there is
            raise _undecodable(error) from error


def _known_formats() -> dict[str, object]:
    Image.init()
    return dict(Image.OPEN)


def _undecodable(error: Exception) -> DataError:
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return DataError(f"cannot be decoded: {reason}")


def _upright(image: Image.Image) -> Image.Image:
    """Turned as EXIF says; asked after loading, since Pillow turns some formats (TIFF) as it loads them."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged EXIF says nothing
        return image
    turn = _TURN.get(orientation) if isinstance(orientation, int) else None
    return image if turn is None else image.transpose(turn)


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bits(image)
    if image.mode == "F":
        raise DataError("has floating-point pixels, whose range is not known; expected 8 or 16 bits")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image)
    return image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    values = np.asarray(image).astype(np.int64)
    if values.min() < 0 or values.max() > 65535:
        raise DataError(f"has pixels from {values.min()} to {values.max()}, expected 8 or 16 bits")
    grey = ((values + 128) // 257).astype(np.uint8)  # 65535 is white
    return Image.fromarray(grey).convert("RGB")
