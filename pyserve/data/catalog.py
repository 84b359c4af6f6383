"""Datasets on disk: `datasets/<id>/` under the data folder, each there as a whole or not at all.

    manifest.json         classes, pictures and split (see `Manifest`)
    images/               the pictures, of one that was uploaded; those of a registered one stay where they are

Nothing here loads torch. Several processes may read at once; a dataset never changes once it is there.
"""

from __future__ import annotations

import errno
import functools
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pyserve import paging
from pyserve.config import Settings
from pyserve.data.archive import ArchiveLimits, unpack
from pyserve.data.cache import forget
from pyserve.data.folder import ScanOptions, scan
from pyserve.data.images import decode_preview
from pyserve.data.manifest import Manifest
from pyserve.data.names import CACHE_FOLDER
from pyserve.data.relabel import next_id, relabelled
from pyserve.data.staging import (
    link_files,
    remove_folder,
    remove_leftovers,
    staging_folder,
    sync_disk,
    sync_file,
    sync_folder,
)
from pyserve.errors import (
    AlreadyExistsError,
    DataError,
    DataLossError,
    InvalidArgumentError,
    NotFoundError,
    PermissionDeniedError,
)
from pyserve.spec import RESOURCE_ID

log = logging.getLogger(__name__)

_FILE = "manifest.json"
_IMAGES = "images"
_NAME = re.compile(rf"datasets/(?P<id>{RESOURCE_ID})")
_NAMED_IN_ERRORS = 10


class Catalog:
    """The datasets of one data folder. All methods block; all may be called from many threads at once.

    Args:
        data_dir: the data folder; `datasets` below it is made if missing, what crashed writers left is removed.
        settings: the limits of archives and pictures, and the roots of `register`; None takes the defaults.
    """

    def __init__(self, data_dir: Path, settings: Settings | None = None) -> None:
        self._root = data_dir.absolute() / "datasets"
        self._cache_dir = data_dir.absolute() / CACHE_FOLDER
        self._settings = settings or Settings.model_construct()
        self._root.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self._root)

    def add_archive(self, dataset_id: str, archive: Path, options: ScanOptions | None = None) -> Manifest:
        """Make a dataset of a zip, tar or tar.gz file, which stays.

        Raises:
            InvalidArgumentError: where `dataset_id` cannot be one.
            AlreadyExistsError: there is one of that name.
            DataError, OSError: see `unpack` and `scan`; nothing is left behind.
        """

        def fill(folder: Path) -> Manifest:
            images = folder / _IMAGES
            images.mkdir()
            limits = ArchiveLimits(
                max_bytes=self._settings.max_archive_bytes,
                max_entries=self._settings.max_archive_entries,
                max_compression_ratio=self._settings.max_compression_ratio,
            )
            unpack(archive, images, limits)
            manifest = self._scan(dataset_id, images, options)
            sync_disk(images)  # after the scan, which needs a while, so that little is left to write
            return manifest

        return self._add(dataset_id, fill)

    def register(self, dataset_id: str, path: Path, options: ScanOptions | None = None) -> Manifest:
        """Make a dataset of a folder that lies on this machine; its pictures stay where they are.

        Args:
            path: absolute, or relative to one of the settings' `dataset_roots`.

        Raises:
            InvalidArgumentError: where `dataset_id` cannot be one.
            PermissionDeniedError: the folder is not below a root, whether it exists or not.
            NotFoundError: there is no such folder.
            AlreadyExistsError, DataError: as for `add_archive`.
        """
        folder = self._registrable(path)
        return self._add(dataset_id, lambda _: self._scan(dataset_id, folder, options))

    def relabel(
        self, name: str, labels: Mapping[str, str], removed: Sequence[str] = (), dataset_id: str = ""
    ) -> Manifest:
        """Make a new version of a dataset, with some labels corrected and some pictures left out.

        Uploaded pictures are linked, so that they take no room twice and either version can be deleted; those of a
        registered dataset stay where they are.

        Args:
            name: `datasets/{id}`, which stays as it is.
            labels: path → right label.
            removed: paths of pictures that the new version leaves out.
            dataset_id: of the new version; default: see `next_id`.

        Raises:
            InvalidArgumentError, FailedPreconditionError: see `relabelled`.
            NotFoundError, DataLossError: as for `get`; also where a picture is gone.
            AlreadyExistsError: there is a dataset of that id.
        """
        old = self.get(name)
        new_id = dataset_id or next_id(old, lambda candidate: (self._root / candidate).exists())
        kept = [item.path for item in old.items if item.path not in set(removed)]

        def fill(folder: Path) -> Manifest:
            manifest = relabelled(old, new_id, labels, removed, _total_bytes(old, kept))
            if not Path(old.root).is_relative_to(self._root / old.dataset_id):
                return manifest
            images = folder / _IMAGES
            link_files(Path(old.root), images, kept)
            return replace(manifest, root=str(images))

        return self._add(new_id, fill)

    def get(self, name: str) -> Manifest:
        """One dataset.

        Args:
            name: `datasets/{id}`.

        Raises:
            InvalidArgumentError: where `name` is not of that form.
            NotFoundError: names what exists.
            DataLossError: its manifest is damaged.
        """
        dataset_id = self._id(name)
        try:
            return self._read(dataset_id)
        except FileNotFoundError:
            raise NotFoundError(f"{name} does not exist; {self._existing()}") from None

    def list(self, page_size: int = 0, page_token: str = "") -> tuple[Sequence[Manifest], str]:
        """All datasets, newest first, in pages; damaged ones are left out and logged.

        Args:
            page_size: at most this many; 0 means 100, more than 1000 means 1000.
            page_token: the second result of the page before; "" for the first.

        Returns:
            The page, and the token of the next one, "" on the last page.

        Raises:
            InvalidArgumentError: a negative size, or a token that no page gave.
        """
        size = paging.page_size(page_size)
        places = sorted(self._places())
        if page_token:
            after = tuple(paging.decode_token(page_token, (int, str)))
            places = [place for place in places if place > after]
        token = paging.encode_token(places[size - 1]) if len(places) > size else ""
        return tuple(self._readable(dataset_id for _, dataset_id in places[:size])), token

    def preview(self, name: str, path: str, max_side: int) -> bytes:
        """A JPEG of one picture, at most `max_side` pixels in its longer side.

        Raises:
            InvalidArgumentError, NotFoundError: as for `get`, and where the dataset has no such picture.
            DataLossError: the picture cannot be read any more.
        """
        manifest = self.get(name)
        file = Path(manifest.root, manifest.item(path, "path").path)
        try:
            return decode_preview(file, max_side, max_pixels=self._settings.max_image_pixels)
        except (DataError, OSError) as error:
            reason = error.message if isinstance(error, DataError) else error.strerror
            raise DataLossError(f"{name}: {path} cannot be read any more: {reason}") from error

    def delete(self, name: str) -> None:
        """Remove a dataset, its uploaded pictures and what the cache holds of it; registered pictures stay.

        Raises:
            InvalidArgumentError, NotFoundError: as for `get`.
        """
        dataset_id = self._id(name)
        digest = self._digest(dataset_id)
        try:
            remove_folder(self._root / dataset_id)
        except FileNotFoundError:
            raise NotFoundError(f"{name} does not exist; {self._existing()}") from None
        if digest:
            forget(self._cache_dir, digest)

    def _add(self, dataset_id: str, fill: Callable[[Path], Manifest]) -> Manifest:
        if not re.fullmatch(RESOURCE_ID, dataset_id):
            raise InvalidArgumentError.field("dataset_id", dataset_id, f"text matching {RESOURCE_ID}")
        target = self._root / dataset_id
        if target.exists():
            raise _taken(dataset_id)
        with staging_folder(self._root) as staging:
            fill(staging).save(staging / _FILE)
            sync_file(staging / _FILE)
            sync_folder(staging)
            try:
                staging.rename(target)
            except OSError as error:  # another writer was quicker: a folder with files is never replaced
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise
                raise _taken(dataset_id) from error
            sync_folder(self._root)
        return self._read(dataset_id)

    def _scan(self, dataset_id: str, folder: Path, options: ScanOptions | None) -> Manifest:
        return scan(
            dataset_id,
            folder,
            options or ScanOptions(),
            max_pixels=self._settings.max_image_pixels,
            max_files=self._settings.max_archive_entries,
        )

    def _registrable(self, path: Path) -> Path:
        """The real folder, once it is known to lie below a root; links are followed first."""
        roots = [root.resolve() for root in self._settings.dataset_roots]
        if not roots:
            raise PermissionDeniedError("path: the server has no dataset_roots, so no folder can be registered")
        inside = [
            folder
            for folder in ((root / path).resolve() for root in roots)
            if any(folder.is_relative_to(root) for root in roots)
        ]
        if not inside:
            expected = "a folder under one of the server's dataset_roots"
            raise PermissionDeniedError.field("path", str(path), expected)
        for folder in inside:
            if folder.is_dir():
                return folder
        raise NotFoundError.field("path", str(path), "a folder that exists")

    def _id(self, name: str) -> str:
        match = _NAME.fullmatch(name)
        if match is None:
            raise InvalidArgumentError.field("name", name, "datasets/{dataset_id}")
        return match["id"]

    def _ids(self) -> Sequence[str]:
        return sorted(p.name for p in self._root.iterdir() if re.fullmatch(RESOURCE_ID, p.name))

    def _existing(self) -> str:
        ids = self._ids()
        if not ids:
            return "no dataset exists yet: upload one first"
        more = f" and {len(ids) - _NAMED_IN_ERRORS} more" if len(ids) > _NAMED_IN_ERRORS else ""
        return f"existing: {', '.join(f'datasets/{i}' for i in ids[:_NAMED_IN_ERRORS])}{more}"

    def _read(self, dataset_id: str) -> Manifest:
        path = self._root / dataset_id / _FILE
        status = path.stat()
        return _load(path, dataset_id, (status.st_ino, status.st_mtime_ns, status.st_size))

    def _digest(self, dataset_id: str) -> str:
        """The digest; "" where the manifest is damaged or missing."""
        try:
            return self._read(dataset_id).digest
        except (FileNotFoundError, DataLossError):
            return ""

    def _places(self) -> Iterator[tuple[int, str]]:
        """Age (negative, ns since the epoch) and id of each dataset: told by its file, so that none is parsed."""
        for dataset_id in self._ids():
            with suppress(FileNotFoundError):  # removed meanwhile
                yield -(self._root / dataset_id / _FILE).stat().st_mtime_ns, dataset_id

    def _readable(self, ids: Iterable[str]) -> Iterator[Manifest]:
        for dataset_id in ids:
            try:
                yield self._read(dataset_id)
            except FileNotFoundError:
                continue  # removed meanwhile
            except DataLossError as error:
                log.warning("left out of the list of datasets: %s", error)


@functools.lru_cache(maxsize=32)
def _load(path: Path, dataset_id: str, version: tuple[int, int, int]) -> Manifest:
    """A manifest, parsed once: `version` tells files of one path apart."""
    return Manifest.load(path, f"datasets/{dataset_id}")


def _total_bytes(manifest: Manifest, paths: Iterable[str]) -> int:
    """Of the encoded files."""
    try:
        return sum(Path(manifest.root, path).stat().st_size for path in paths)
    except OSError as error:
        raise DataLossError(f"{manifest.name}: a picture is gone: {error.strerror}") from error


def _taken(dataset_id: str) -> AlreadyExistsError:
    name = f"datasets/{dataset_id}"
    return AlreadyExistsError(
        f"{name} exists already: choose another dataset_id, or delete it first", metadata={"resource": name}
    )
