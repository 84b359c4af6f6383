"""Figures as files of the job. A picture that cannot be drawn is told, and fails nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from pyserve.jobs.events import Artifact
from pyserve.jobs.paths import artifacts_folder
from pyserve.jobs.store import StaleAttemptError

if TYPE_CHECKING:
    from pyserve.insight.figures import FigureFile
    from pyserve.jobs.runner import WorkerOrder
    from pyserve.jobs.worker.report import JobReport

log = logging.getLogger(__name__)


def keep_figure(
    what: str, draw: Callable[[], Sequence[FigureFile]], order: WorkerOrder, report: JobReport
) -> None:
    """Draw a figure and keep its files, each whole or not at all.

    Args:
        what: the figure, for the warning where it cannot be drawn or written.
        draw: makes it.
    """
    folder = artifacts_folder(order.data_dir, order.name)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for file in draw():
            temporary = folder / f".{file.name}"
            temporary.write_bytes(file.data)
            temporary.replace(folder / file.name)
            report.tell(Artifact(name=file.name, media_type=file.media_type, size_bytes=len(file.data)))
    except StaleAttemptError:
        raise
    except Exception as error:
        log.exception("the figure of the %s was not made", what)
        report.warn("figure_failed", f"the figure of the {what} was not made ({type(error).__name__})")
