"""The model that a server is given with its settings, as KServe and other platforms lay one down beside it."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

from pyserve.config import Settings
from pyserve.errors import InvalidArgumentError, NotFoundError
from pyserve.inference.loaded_models import LoadedModels
from pyserve.inference.model_store import ModelStore

log = logging.getLogger(__name__)


def take_given(settings: Settings, store: ModelStore, models: LoadedModels) -> str:
    """Make a model of the folder `settings.bundle`, once it has answered its golden pictures, and load it.

    Returns:
        Its name; "" where no folder is given. A model that is there already by that name stays as it is: the
        server was given it before.

    Raises:
        InvalidArgumentError: no such folder, or no name for a model.
        DataLossError: the folder holds no bundle, or one that is damaged.
    """
    folder, model_id = settings.bundle, settings.bundle_model_id
    if folder is None:
        return ""
    if not folder.is_dir():
        raise InvalidArgumentError.field("bundle", str(folder), "a folder that holds an exported model")
    model_id = model_id or folder.resolve().name
    name = f"models/{model_id}"
    try:
        store.versions(name)
    except NotFoundError:
        models.prove(folder, name)
        store.add(model_id, lambda staging: _copy(folder, staging))
        log.info("took %s from %s", name, folder)
    models.get(name)
    return name


def _copy(source: Path, target: Path) -> None:
    shutil.copytree(source, target, dirs_exist_ok=True)
