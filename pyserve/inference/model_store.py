"""Model versions on disk: `models/<id>/<n>/` under the data folder, each a whole bundle or not there at all.

Nothing here loads torch. Several processes may add and read at once: a bundle is written beside the others and
renamed into place, and the rename decides who gets which number.
"""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pyserve import paging
from pyserve.data.staging import remove_leftovers, staging_folder, sync_file, sync_folder
from pyserve.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from pyserve.inference.description import WEIGHTS_FILE, Description, Preprocessing, read_description
from pyserve.spec import RESOURCE_ID

log = logging.getLogger(__name__)

_NAME = re.compile(rf"models/(?P<id>{RESOURCE_ID})(/versions/(?P<version>[1-9][0-9]{{0,8}}))?")
_NAMED_IN_ERRORS = 10


@dataclass(frozen=True)
class ModelInfo:
    """One model version, as its `bundle.json` tells it."""

    model_id: str
    version: int
    folder: Path
    description: Description

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


class ModelStore:
    """The models of one data folder.

    Args:
        data_dir: the data folder; `models` below it is made if missing, and what crashed writers left is removed.
    """

    def __init__(self, data_dir: Path) -> None:
        self._root = data_dir / "models"
        self._root.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self._root)

    def add(self, model_id: str, writer: Callable[[Path], None]) -> str:
        """Add a version; it appears whole or, where `writer` fails or the process dies, not at all.

        Args:
            model_id: name part of the model, made if new.
            writer: writes a bundle into the folder that it is given.

        Returns:
            `models/{model_id}/versions/{n}`, n one above the highest.

        Raises:
            InvalidArgumentError: where `model_id` cannot be one.
            DataLossError: where the writer left no valid `bundle.json`.
        """
        if not re.fullmatch(RESOURCE_ID, model_id):
            raise InvalidArgumentError.field("model_id", model_id, f"text matching {RESOURCE_ID}")
        with staging_folder(self._root) as staging:
            writer(staging)
            read_description(staging, f"models/{model_id}")
            _sync(staging)
            version = self._publish(staging, model_id)
        return f"models/{model_id}/versions/{version}"

    def get(self, name: str) -> ModelInfo:
        """One version: of `models/{id}` the newest.

        Raises:
            InvalidArgumentError: where `name` is not of either form.
            NotFoundError: names what exists.
            DataLossError, FailedPreconditionError: see `read_description`.
        """
        match = _NAME.fullmatch(name)
        if match is None:
            raise InvalidArgumentError.field("name", name, "models/{model_id} or models/{model_id}/versions/{n}")
        model_id, wanted = match["id"], match["version"]
        versions = self._versions(model_id)
        if not versions:
            raise NotFoundError(f"models/{model_id} does not exist; {self._existing()}")
        version = int(wanted) if wanted else versions[-1]
        if version not in versions:
            existing = ", ".join(str(v) for v in versions[: -_NAMED_IN_ERRORS - 1 : -1])
            raise NotFoundError(f"models/{model_id} has no version {version}; newest first it has: {existing}")
        return self._read(model_id, version)

    def list(self, page_size: int = 0, page_token: str = "") -> tuple[Sequence[ModelInfo], str]:
        """All versions, newest first, in pages; damaged ones are left out and logged.

        Args:
            page_size: at most this many; 0 means 100, more than 1000 means 1000.
            page_token: the second result of the page before; "" for the first.

        Returns:
            The page, and the token of the next one, "" on the last page.

        Raises:
            InvalidArgumentError: a negative size, or a token that no page gave.
        """
        size = paging.page_size(page_size)
        infos = sorted(self._readable(), key=_order)
        if page_token:
            after = tuple(paging.decode_token(page_token, (float, str, int)))
            infos = [info for info in infos if _order(info) > after]
        page = infos[:size]
        return page, paging.encode_token(_order(page[-1])) if len(infos) > size else ""

    def _ids(self) -> Sequence[str]:
        return sorted(p.name for p in self._root.iterdir() if re.fullmatch(RESOURCE_ID, p.name) and p.is_dir())

    def _versions(self, model_id: str) -> Sequence[int]:
        """Ascending."""
        try:
            names = [p.name for p in (self._root / model_id).iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(int(name) for name in names if re.fullmatch(r"[1-9][0-9]{0,8}", name))

    def _existing(self) -> str:
        ids = [model_id for model_id in self._ids() if self._versions(model_id)]
        if not ids:
            return "no model exists yet: train one first"
        more = f" and {len(ids) - _NAMED_IN_ERRORS} more" if len(ids) > _NAMED_IN_ERRORS else ""
        return f"existing: {', '.join(f'models/{i}' for i in ids[:_NAMED_IN_ERRORS])}{more}"

    def _read(self, model_id: str, version: int) -> ModelInfo:
        folder = self._root / model_id / str(version)
        return ModelInfo(
            model_id, version, folder, read_description(folder, f"models/{model_id}/versions/{version}")
        )

    def _readable(self) -> Iterator[ModelInfo]:
        for model_id in self._ids():
            for version in self._versions(model_id):
                try:
                    yield self._read(model_id, version)
                except (DataLossError, FailedPreconditionError) as error:
                    log.warning("left out of the list of models: %s", error)

    def _publish(self, staging: Path, model_id: str) -> int:
        parent = self._root / model_id
        parent.mkdir(exist_ok=True)
        version = (self._versions(model_id) or [0])[-1] + 1
        while True:
            try:
                staging.rename(parent / str(version))
            except OSError as error:  # another writer was quicker: a folder with files is never replaced
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                version += 1
            else:
                sync_folder(parent)
                return version


def _order(info: ModelInfo) -> tuple[float, str, int]:
    return (-info.create_time, info.model_id, -info.version)


def _sync(folder: Path) -> None:
    """Bring a folder's files to the disk, so that a rename cannot outlive them in a power cut."""
    for path in folder.iterdir():
        sync_file(path)
    sync_folder(folder)
