"""Download a file once: into a folder, checked against the hash in its name, whole or not at all."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import BinaryIO
from urllib.parse import urlsplit

from pyserve.errors import UnavailableError

TIMEOUT_S = 30.0  # without a byte; torch.hub's own download would wait for ever


def download(url: str, folder: Path, *, timeout_s: float = TIMEOUT_S) -> Path:
    """The file of a URL in `folder`, downloaded unless it is there.

    A name like `resnet18-f37072fd.pth` says with which digits its SHA-256 begins; others are not accepted.

    Raises:
        UnavailableError: no network, no such file, or something else came; says what to do.
    """
    name = Path(urlsplit(url).path).name
    path = folder / name
    if path.is_file():
        return path
    digits = re.search(r"-([0-9a-f]{8,64})\.", name)
    if digits is None:
        raise ValueError(f"{url}: expected the first digits of its SHA-256 in the name")
    folder.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=name, suffix=".part", dir=folder)
    try:
        with os.fdopen(handle, "wb") as file, urllib.request.urlopen(url, timeout=timeout_s) as answer:  # noqa: S310
            shutil.copyfileobj(answer, file, 1 << 20)
        with Path(temporary).open("rb") as file:
            found = _sha256(file)
        if not found.startswith(digits[1]):
            raise OSError(f"its SHA-256 begins with {found[:8]} instead of {digits[1]}")
        Path(temporary).replace(path)
    except (OSError, HTTPException) as error:
        raise UnavailableError(
            f"weights: {url} could not be downloaded ({error}); where there is no network, put the file under one "
            "of the weights_roots and name it"
        ) from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return path


def _sha256(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(1 << 20):
        digest.update(chunk)
    return digest.hexdigest()
