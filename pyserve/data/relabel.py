"""A new version of a dataset from corrected labels. The old one stays as it is: datasets never change.

A version is a dataset of its own, with its own name (`datasets/pets-v2` after `datasets/pets`), so that a name
means the same pictures with the same labels for ever; its manifest remembers what it was made from, and every
change.
"""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from pyserve.data.manifest import Correction, Item, Manifest, Origin, digest_of
from pyserve.errors import FailedPreconditionError, InvalidArgumentError

_NAMED_IN_ERRORS = 10
_LONGEST_ID = 63


def relabelled(
    manifest: Manifest, dataset_id: str, labels: Mapping[str, str], removed: Sequence[str], size_bytes: int
) -> Manifest:
    """The new version's manifest; its `root` is still that of the old one.

    Args:
        manifest: the old version.
        dataset_id: of the new one.
        labels: path → right label, for pictures that have a wrong one.
        removed: paths of pictures that the new version leaves out.
        size_bytes: of the pictures that stay.

    Raises:
        InvalidArgumentError: nothing to change, a picture or a class that does not exist, a label that the picture
            has already, or a picture that is named twice.
        FailedPreconditionError: a class would be left without pictures to learn from.
    """
    _check(manifest, labels, removed)
    gone = set(removed)
    index = {name: i for i, name in enumerate(manifest.classes)}
    kept = [item for item in manifest.items if item.path not in gone]
    items = [replace(item, label=index[labels[item.path]]) if item.path in labels else item for item in kept]
    _require_pictures(manifest, items)
    ordered = tuple(sorted(items, key=lambda item: (item.label, item.part, item.path)))
    old = {item.path: manifest.classes[item.label] for item in manifest.items}
    corrections = [Correction(path, old[path], new) for path, new in sorted(labels.items())]
    corrections += [Correction(path, old[path], "") for path in sorted(gone)]
    return replace(
        manifest,
        dataset_id=dataset_id,
        items=ordered,
        size_bytes=size_bytes,
        digest=digest_of(manifest.classes, ordered),
        create_time=time.time(),
        origin=Origin(manifest.name, manifest.digest, manifest.version, tuple(corrections)),
    )


def next_id(manifest: Manifest, is_taken: Callable[[str], bool]) -> str:
    """A free id for the next version: `pets-v2` after `pets`, `pets-v3` after that."""
    base = re.sub(r"-v[0-9]+$", "", manifest.dataset_id)
    number = manifest.version + 1
    while True:
        suffix = f"-v{number}"
        dataset_id = base[: _LONGEST_ID - len(suffix)] + suffix
        if not is_taken(dataset_id):
            return dataset_id
        number += 1


def _check(manifest: Manifest, labels: Mapping[str, str], removed: Sequence[str]) -> None:
    if not labels and not removed:
        raise InvalidArgumentError.field(
            "corrections", "none", "at least one label to correct or picture to remove"
        )
    of_path = {item.path: manifest.classes[item.label] for item in manifest.items}
    for field, paths in (("corrections.path", labels), ("removed", removed)):
        for path in paths:
            if path not in of_path:
                raise InvalidArgumentError.field(field, path, f"a picture of {manifest.name}")
    for path, label in labels.items():
        if label not in manifest.classes:
            names = ", ".join(manifest.classes[:_NAMED_IN_ERRORS])
            more = f" and {len(manifest.classes) - _NAMED_IN_ERRORS} more"
            expected = f"one of {names}{more if len(manifest.classes) > _NAMED_IN_ERRORS else ''}"
            raise InvalidArgumentError.field("corrections.label", label, expected)
        if label == of_path[path]:
            raise InvalidArgumentError.field("corrections.label", label, f"another label than {path} has already")
    twice = sorted({path for path, count in Counter(removed).items() if count > 1} | (set(labels) & set(removed)))
    if twice:
        raise InvalidArgumentError.field("removed", twice[0], "each picture once, either corrected or removed")


def _require_pictures(manifest: Manifest, items: Sequence[Item]) -> None:
    """Every class keeps a picture to learn from, where it had one, and some picture measures."""
    had, has = (
        Counter((item.label, item.part) for item in either if item.part == "train")
        for either in (manifest.items, items)
    )
    for (label, _), _ in had.items():
        if not has[label, "train"]:
            raise FailedPreconditionError(
                f"corrections: class {manifest.classes[label]!r} of {manifest.name} would have no pictures in its "
                "train part; leave it some, or make a dataset without the class"
            )
    if manifest.part_items("valid") and not any(item.part == "valid" for item in items):
        raise FailedPreconditionError(f"corrections: the valid part of {manifest.name} would be empty")
