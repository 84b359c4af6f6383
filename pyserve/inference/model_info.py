"""One model version as its `bundle.json` tells it, and the order in which lists show them."""

from __future__ import annotations

import base64
import binascii
import json
from dataclasses import dataclass
from pathlib import Path

from pyserve.errors import InvalidArgumentError
from pyserve.inference.description import WEIGHTS_FILE, Description, Preprocessing


@dataclass(frozen=True)
class ModelInfo:
    """One model version, as its `bundle.json` tells it."""

    model_id: str
    version: int
    folder: Path
    description: Description
    aliases: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """`models/{id}/versions/{n}`."""
        return f"models/{self.model_id}/versions/{self.version}"

    @property
    def architecture(self) -> str:
        """Registered architecture."""
        return self.description.architecture

    @property
    def labels(self) -> tuple[str, ...]:
        """The classes in output order."""
        return self.description.labels

    @property
    def preprocessing(self) -> Preprocessing:
        """How a picture becomes the network's input."""
        return self.description.preprocessing

    @property
    def metrics(self) -> dict[str, float]:
        """Validation metrics: "accuracy" (0…1), "loss" (nats)."""
        return self.description.metrics

    @property
    def provenance(self) -> dict[str, str]:
        """Where it comes from: "dataset", "dataset_digest", "job", "seed", versions."""
        return self.description.provenance

    @property
    def dataset(self) -> str:
        """`datasets/{id}` it was trained on; "" where that is not known."""
        return self.provenance.get("dataset", "")

    @property
    def parameter_count(self) -> int:
        """Number of parameters."""
        return self.description.parameter_count

    @property
    def size_bytes(self) -> int:
        """Size on disk, bytes."""
        return self.description.size_bytes

    @property
    def create_time(self) -> float:
        """When it was made, seconds since the epoch."""
        return self.description.create_time

    @property
    def weights_path(self) -> Path:
        """The state dict, in safetensors."""
        return self.folder / WEIGHTS_FILE


def order(info: ModelInfo) -> tuple[float, str, int]:
    """Newest first, as a key to sort by."""
    return (-info.create_time, info.model_id, -info.version)


def encode_token(info: ModelInfo) -> str:
    """The token of the page that begins after this one."""
    return base64.urlsafe_b64encode(json.dumps(order(info)).encode()).decode()


def decode_token(token: str) -> tuple[float, str, int]:
    """The `order` of the last one on the page before.

    Raises:
        InvalidArgumentError: no page gave this token.
    """
    try:
        time, model_id, version = json.loads(base64.b64decode(token, altchars=b"-_", validate=True))
        return float(time), str(model_id), int(version)
    except (binascii.Error, ValueError, TypeError):
        raise InvalidArgumentError.field("page_token", token[:100], "next_page_token of the page before") from None
