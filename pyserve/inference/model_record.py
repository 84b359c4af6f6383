"""`model.json` in a model's folder: its aliases, and the highest version number that it ever had.

The number outlives the version, so that a version that was deleted never comes back as another model. The file
appears whole or not at all; the folder's time of change tells readers when to look again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pyserve.data.staging import sync_folder
from pyserve.errors import DataLossError
from pyserve.spec import RESOURCE_ID

RECORD_FILE = "model.json"


class ModelRecord(BaseModel):
    """All that the file holds; a model without one has the defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    aliases: dict[Annotated[str, Field(pattern=f"^{RESOURCE_ID}$")], Annotated[int, Field(ge=1)]] = {}
    last_version: int = Field(default=0, ge=0)


def read_record(folder: Path, name: str) -> ModelRecord:
    """The record of the model in `folder`.

    Args:
        name: what errors call the model.

    Raises:
        DataLossError: it is damaged.
    """
    try:
        return ModelRecord.model_validate_json((folder / RECORD_FILE).read_bytes())
    except FileNotFoundError:
        return ModelRecord()
    except (OSError, ValidationError) as error:
        raise DataLossError(f"{name}: {RECORD_FILE} is damaged") from error


def write_record(folder: Path, record: ModelRecord) -> None:
    """Replace the record of the model in `folder`; one writer at a time.

    Raises:
        OSError: the disk cannot take it.
    """
    temporary = folder / f"{RECORD_FILE}.tmp"  # there is one writer; what a dead one left is written over
    with temporary.open("w", encoding="utf-8") as file:
        file.write(record.model_dump_json(indent=1))
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(folder / RECORD_FILE)
    sync_folder(folder)
