"""Model versions on disk: `models/<id>/<n>/` under the data folder, each a whole bundle or not there at all.

    models/pets/1/         a bundle (see `description`)
    models/pets/model.json aliases (see `model_record`)

Nothing here loads torch. Several processes may add and read at once: a bundle is written beside the others and
renamed into place, and the rename decides who gets which number.
"""

from __future__ import annotations

import errno
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from pyserve import paging
from pyserve.data.staging import remove_folder, remove_leftovers, staging_folder, sync_file, sync_folder
from pyserve.errors import DataLossError, FailedPreconditionError, InvalidArgumentError, NotFoundError
from pyserve.inference.description import read_description
from pyserve.inference.model_info import ModelInfo
from pyserve.inference.model_record import ModelRecord, read_record, write_record
from pyserve.spec import RESOURCE_ID

log = logging.getLogger(__name__)

_NAME = re.compile(
    rf"models/(?P<id>{RESOURCE_ID})(/versions/(?P<version>[1-9][0-9]{{0,8}})|@(?P<alias>{RESOURCE_ID}))?"
)
NAME_FORMS = "models/{model_id}, models/{model_id}/versions/{n} or models/{model_id}@{alias}"
_NAMED_IN_ERRORS = 10
# A folder's time of change has the grain of the file system's clock: what was read within this time after a change
# may miss another change that bears the same time, and is not kept.
_GRAIN_NS = 50_000_000


@dataclass(frozen=True)
class _Known:
    """What a model's folder held when it had last changed."""

    mtime_ns: int
    versions: Sequence[int]
    record: ModelRecord


class ModelStore:
    """The models of one data folder.

    Args:
        data_dir: the data folder; `models` below it is made if missing, and what crashed writers left is removed.
    """

    def __init__(self, data_dir: Path) -> None:
        self._root = data_dir / "models"
        self._root.mkdir(parents=True, exist_ok=True)
        self._known: dict[str, _Known] = {}
        self._changing = threading.Lock()  # records are read, changed and written by one thread at a time
        remove_leftovers(self._root)
        for model_id in self._ids():
            remove_leftovers(self._root / model_id)

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

    def scratch(self) -> AbstractContextManager[Path]:
        """An empty folder on the models' disk, for a file in the making; it goes with the block."""
        return staging_folder(self._root)

    def resolve(self, name: str) -> str:
        """The version that a name means now: `models/{id}` the newest, `models/{id}@{alias}` what it points to.

        Costs a look at one folder's time of change where nothing has changed. Whether a version that is named
        itself exists is not asked.

        Raises:
            InvalidArgumentError: `name` is of none of the three forms.
            NotFoundError: names what exists.
            DataLossError: the model's record is damaged.
        """
        match = self._match(name)
        model_id = match["id"]
        if match["version"]:
            return name
        known = self._look(model_id)
        if not known.versions:
            raise NotFoundError(f"models/{model_id} does not exist; {self._existing()}")
        if not match["alias"]:
            return f"models/{model_id}/versions/{known.versions[-1]}"
        version = known.record.aliases.get(match["alias"])
        if version is None:
            raise NotFoundError(f"models/{model_id} has no alias {match['alias']}; {_aliases(known.record)}")
        return f"models/{model_id}/versions/{version}"

    def get(self, name: str) -> ModelInfo:
        """One version, by any of its names.

        Raises:
            InvalidArgumentError, NotFoundError: as for `resolve`.
            DataLossError, FailedPreconditionError: see `read_description`.
        """
        match = self._match(self.resolve(name))
        model_id, version = match["id"], int(match["version"])
        known = self._look(model_id)
        if not known.versions:
            raise NotFoundError(f"models/{model_id} does not exist; {self._existing()}")
        if version not in known.versions:
            existing = ", ".join(str(v) for v in known.versions[: -_NAMED_IN_ERRORS - 1 : -1])
            raise NotFoundError(f"models/{model_id} has no version {version}; newest first it has: {existing}")
        return self._read(model_id, version)

    def versions(self, name: str) -> Sequence[int]:
        """Numbers of a model's versions, ascending.

        Args:
            name: any name of the model.

        Raises:
            InvalidArgumentError, NotFoundError: as for `resolve`.
        """
        model_id = self._match(name)["id"]
        versions = self._look(model_id).versions
        if not versions:
            raise NotFoundError(f"models/{model_id} does not exist; {self._existing()}")
        return versions

    def aliases(self, name: str) -> dict[str, int]:
        """A model's aliases and the versions that they point to.

        Raises:
            InvalidArgumentError, DataLossError: as for `resolve`.
        """
        return dict(self._look(self._match(name)["id"]).record.aliases)

    def set_alias(self, alias: str, version: str) -> None:
        """Point an alias to a version, or remove it.

        Args:
            alias: `models/{id}@{alias}`.
            version: a name of a version of the same model; "" removes the alias.

        Raises:
            InvalidArgumentError: one is of another form, or they speak of two models.
            NotFoundError: the version, or the alias to be removed, does not exist.
        """
        match = _NAME.fullmatch(alias)
        if match is None or not match["alias"]:
            raise InvalidArgumentError.field("alias", alias, "models/{model_id}@{alias}")
        with self._changing:
            if version:
                target = self.get(version)
                if target.model_id != match["id"]:
                    raise InvalidArgumentError.field("version", version, f"a version of models/{match['id']}")
                aliases = {**self.aliases(alias), match["alias"]: target.version}
            else:
                self.resolve(alias)
                aliases = {n: version for n, version in self.aliases(alias).items() if n != match["alias"]}
            self._update(match["id"], aliases=aliases)

    def delete(self, name: str) -> Sequence[str]:
        """Remove a version, or all versions and aliases of a model; their numbers are not given again.

        Args:
            name: `models/{id}/versions/{n}` or `models/{id}`.

        Returns:
            The versions that were removed.

        Raises:
            InvalidArgumentError: an alias, or no name.
            NotFoundError: names what exists.
            FailedPreconditionError: an alias points to the version.
        """
        match = self._match(name)
        if match["alias"]:
            raise InvalidArgumentError.field("name", name, "models/{model_id} or models/{model_id}/versions/{n}")
        model_id = match["id"]
        with self._changing:
            versions = self.versions(name)
            if match["version"]:
                versions = [self.get(name).version]
                self._refuse_aliased(model_id, versions[0])
            record = self._look(model_id).record
            last = max(record.last_version, *versions)
            self._update(model_id, aliases=record.aliases if match["version"] else {}, last_version=last)
            for version in versions:
                remove_folder(self._root / model_id / str(version))
        return [f"models/{model_id}/versions/{version}" for version in versions]

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
        infos = sorted(self._readable(), key=lambda info: info.order)
        if page_token:
            after = tuple(paging.decode_token(page_token, (float, str, int)))
            infos = [info for info in infos if info.order > after]
        page = infos[:size]
        return page, paging.encode_token(page[-1].order) if len(infos) > size else ""

    def _ids(self) -> Sequence[str]:
        return sorted(p.name for p in self._root.iterdir() if re.fullmatch(RESOURCE_ID, p.name) and p.is_dir())

    def _versions(self, model_id: str) -> Sequence[int]:
        """Ascending."""
        try:
            names = [p.name for p in (self._root / model_id).iterdir()]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(int(name) for name in names if re.fullmatch(r"[1-9][0-9]{0,8}", name))

    def _match(self, name: str) -> re.Match[str]:
        match = _NAME.fullmatch(name)
        if match is None:
            raise InvalidArgumentError.field("name", name, NAME_FORMS)
        return match

    def _look(self, model_id: str) -> _Known:
        """What a model's folder holds, from memory where it has not changed."""
        folder = self._root / model_id
        try:
            mtime_ns = folder.stat().st_mtime_ns
        except (FileNotFoundError, NotADirectoryError):
            return _Known(0, (), ModelRecord())
        known = self._known.get(model_id)
        if known is None or known.mtime_ns != mtime_ns:
            now_ns = time.time_ns()
            known = _Known(mtime_ns, self._versions(model_id), read_record(folder, f"models/{model_id}"))
            if now_ns - mtime_ns > _GRAIN_NS:
                self._known[model_id] = known
        return known

    def _update(self, model_id: str, **changes: object) -> None:
        folder = self._root / model_id
        record = read_record(folder, f"models/{model_id}")
        write_record(folder, record.model_copy(update=changes))

    def _refuse_aliased(self, model_id: str, version: int) -> None:
        pointing = [n for n, number in self.aliases(f"models/{model_id}").items() if number == version]
        if pointing:
            raise FailedPreconditionError(
                f"models/{model_id}@{pointing[0]} points to version {version}: move or remove the alias first"
            )

    def _existing(self) -> str:
        ids = [model_id for model_id in self._ids() if self._versions(model_id)]
        if not ids:
            return "no model exists yet: train one first"
        more = f" and {len(ids) - _NAMED_IN_ERRORS} more" if len(ids) > _NAMED_IN_ERRORS else ""
        return f"existing: {', '.join(f'models/{i}' for i in ids[:_NAMED_IN_ERRORS])}{more}"

    def _read(self, model_id: str, version: int) -> ModelInfo:
        folder = self._root / model_id / str(version)
        description = read_description(folder, f"models/{model_id}/versions/{version}")
        aliases = self.aliases(f"models/{model_id}").items()
        pointing = tuple(sorted(name for name, number in aliases if number == version))
        return ModelInfo(model_id, version, folder, description, pointing)

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
        last = read_record(parent, f"models/{model_id}").last_version
        version = max([last, *self._versions(model_id)]) + 1
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


def _aliases(record: ModelRecord) -> str:
    names = ", ".join(sorted(record.aliases)[:_NAMED_IN_ERRORS])
    return f"it has: {names}" if names else "it has none"


def _sync(folder: Path) -> None:
    """Bring a folder's files to the disk, so that a rename cannot outlive them in a power cut."""
    for path in folder.iterdir():
        sync_file(path)
    sync_folder(folder)
