"""`bundle.json`: what a model bundle says about itself, read without torch.

A bundle is a folder with three files and nothing that runs code when it is loaded:

    bundle.json           this description, with size and checksum of the two others
    model.safetensors     the state dict of the plain (torchvision-like) model
    golden.safetensors    a few pictures and the answers the model gave when it was made
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pyserve.data.staging import link_files
from pyserve.errors import DataLossError, FailedPreconditionError

DESCRIPTION_FILE = "bundle.json"
WEIGHTS_FILE = "model.safetensors"
GOLDEN_FILE = "golden.safetensors"
# 1: without a temperature, which then is 1. 2: with one.
FORMAT_VERSION = 2
READ_VERSIONS = range(1, FORMAT_VERSION + 1)

Finite = Annotated[float, Field(allow_inf_nan=False)]
Channels = tuple[Finite, Finite, Finite]


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Preprocessing(_Strict):
    """How a picture becomes the network's input.

    Short side to `presize` pixels, centre square, the central `image_size` of it, values 0…1, then per RGB channel
    (value − mean) / std.
    """

    image_size: int = Field(ge=1, le=4096)
    presize: int = Field(ge=1, le=8192)
    mean: Channels
    std: Channels

    @field_validator("std")
    @classmethod
    def _positive(cls, value: Channels) -> Channels:
        if min(value) <= 0:
            raise ValueError("expected three numbers > 0")
        return value

    @model_validator(mode="after")
    def _crop_fits(self) -> Preprocessing:
        if self.presize < self.image_size:
            raise ValueError(f"presize {self.presize} is below image_size {self.image_size}")
        return self


class FileRecord(_Strict):
    """A file of the bundle as it was written."""

    size_bytes: int = Field(ge=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


class Description(_Strict):
    """All that `bundle.json` holds."""

    format: Literal["pyserve-bundle"] = "pyserve-bundle"
    format_version: int = FORMAT_VERSION
    architecture: str = Field(min_length=1)
    labels: tuple[str, ...] = Field(min_length=1)
    preprocessing: Preprocessing
    metrics: dict[str, float] = {}
    provenance: dict[str, str] = {}
    temperature: Finite = Field(default=1.0, gt=0)  # logits are divided by it before the softmax
    parameter_count: int = Field(ge=0)
    create_time: Finite = Field(ge=0)  # seconds since the epoch
    files: dict[str, FileRecord]

    @field_validator("labels")
    @classmethod
    def _distinct(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) != len(value):
            raise ValueError("expected distinct labels")
        return value

    @field_validator("files")
    @classmethod
    def _complete(cls, value: dict[str, FileRecord]) -> dict[str, FileRecord]:
        if set(value) != {WEIGHTS_FILE, GOLDEN_FILE}:
            raise ValueError(f"expected {WEIGHTS_FILE} and {GOLDEN_FILE}")
        return value

    @property
    def size_bytes(self) -> int:
        """Weights and golden pictures on disk, bytes."""
        return sum(record.size_bytes for record in self.files.values())


def read_description(folder: Path, name: str) -> Description:
    """The description of the bundle in `folder`.

    Args:
        name: what errors call the model; server paths stay out of them.

    Raises:
        DataLossError: `bundle.json` is missing or damaged; says which field.
        FailedPreconditionError: a later version of pyserve wrote it.
    """
    try:
        text = (folder / DESCRIPTION_FILE).read_bytes()
    except OSError as error:
        raise DataLossError(f"{name}: {DESCRIPTION_FILE} cannot be read: {error.strerror}") from error
    try:
        description = Description.model_validate_json(text)
    except ValidationError as error:
        _refuse_later_format(text, name)
        faults = "; ".join(_fault(e) for e in error.errors()[:3])
        raise DataLossError(f"{name}: {DESCRIPTION_FILE} is damaged: {faults}") from error
    _refuse_later_format(text, name)
    return description


def derive_bundle(source: Path, folder: Path, description: Description) -> None:
    """Write a bundle with the files of another one and a description of its own; nothing is copied on one disk.

    Args:
        source: the bundle whose files are taken.
        folder: an existing, empty folder (see `ModelStore.add`).
        description: its `files` are those of `source`.
    """
    link_files(source, folder, description.files)
    (folder / DESCRIPTION_FILE).write_text(description.model_dump_json(indent=1), encoding="utf-8")


def _fault(error: Any) -> str:
    field = ".".join(str(part) for part in error["loc"])
    return f"{field}: {error['msg']}" if field else str(error["msg"])


class _Version(BaseModel):
    format_version: int


def _refuse_later_format(text: bytes, name: str) -> None:
    try:
        version = _Version.model_validate_json(text).format_version
    except ValidationError:
        return  # not even that: the caller says what is damaged
    if version not in READ_VERSIONS:
        raise FailedPreconditionError(
            f"{name}: {DESCRIPTION_FILE} has format version {version}, this pyserve reads "
            f"{READ_VERSIONS[0]} to {READ_VERSIONS[-1]}: update it"
        )
