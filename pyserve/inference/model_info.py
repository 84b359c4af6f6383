"""One model version, as its `bundle.json` tells it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

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
    def order(self) -> tuple[float, str, int]:
        """Where it stands in lists, which show the newest first."""
        return (-self.create_time, self.model_id, -self.version)

    @property
    def weights_path(self) -> Path:
        """The state dict, in safetensors."""
        return self.folder / WEIGHTS_FILE
