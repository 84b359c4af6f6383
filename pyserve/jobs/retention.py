"""What may go: old jobs, old versions of models, checkpoints that nobody can go on from. Only decides.

Kept are the newest, the best, and whatever is in use: jobs that have not ended for good, what they name, and what
an alias points to.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set

from pyserve.inference.model_info import ModelInfo
from pyserve.jobs.events import TERMINAL
from pyserve.jobs.records import JobRecord, TrainResult
from pyserve.spec import TrainSpec


def removable_jobs(records: Sequence[JobRecord], keep: int, kept_models: Set[str]) -> list[str]:
    """Names of the jobs that may be deleted with all their files.

    Args:
        records: all jobs.
        keep: how many of those that have ended for good stay, newest first. Beside them stay the best training of
            each model, the trainings of `kept_models`, and the finders that an unfinished job takes its rate from.
        kept_models: versions that an alias points to, or an unfinished job uses.
    """
    ended = _newest_first(records)
    needed = {r.spec.lr_from for r in records if r.state not in TERMINAL and isinstance(r.spec, TrainSpec)}
    needed |= _best(_trainings(ended))
    for record in ended:
        if isinstance(record.result, TrainResult) and record.result.model in kept_models:
            needed.add(record.name)
    return [record.name for record in ended[keep:] if record.name not in needed]


def removable_checkpoints(records: Sequence[JobRecord], keep: int) -> list[str]:
    """Names of the jobs whose checkpoints may be deleted: all that have ended for good but the `keep` newest."""
    return [record.name for record in _newest_first(records)[keep:]]


def removable_versions(infos: Iterable[ModelInfo], keep: int, used: Set[str]) -> list[str]:
    """Names of the model versions that may be deleted.

    Args:
        infos: all versions of all models.
        keep: how many versions of each model stay, newest first. Beside them stay the best one, and those with an
            alias.
        used: versions that are in use, which stay.
    """
    models: dict[str, list[ModelInfo]] = defaultdict(list)
    for info in infos:
        models[info.model_id].append(info)
    removable = []
    for versions in models.values():
        versions.sort(key=lambda info: info.version, reverse=True)
        best = _best((info.model_id, info.name, info.metrics) for info in versions)
        kept = used | best
        removable += [info.name for info in versions[keep:] if not info.aliases and info.name not in kept]
    return removable


def _newest_first(records: Iterable[JobRecord]) -> list[JobRecord]:
    """Those that have ended for good; ids ascend with time."""
    ended = (record for record in records if record.state in TERMINAL)
    return sorted(ended, key=lambda record: record.id, reverse=True)


def _trainings(records: Iterable[JobRecord]) -> Iterator[tuple[str, str, Mapping[str, float]]]:
    for record in records:
        if isinstance(record.result, TrainResult):
            yield record.training.output_model_id, record.name, record.result.metrics


def _best(candidates: Iterable[tuple[str, str, Mapping[str, float]]]) -> set[str]:
    """Of each group the name with the highest accuracy, then the lowest loss, then the first that comes."""
    best: dict[str, tuple[tuple[float, float], str]] = {}
    for group, name, metrics in candidates:
        figures = (metrics.get("accuracy", float("-inf")), -metrics.get("loss", float("inf")))
        if group not in best or figures > best[group][0]:
            best[group] = (figures, name)
    return {name for _, name in best.values()}
