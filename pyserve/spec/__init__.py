"""What a job is asked to do: the typed descriptions that server, job store, worker and training share.

    names.py     what fields may name: recipes, schedules, rules, image kernels
    base.py      what all descriptions have in common
    train.py     `TrainSpec`, and the defaults that recipes set
    finder.py    `FindLearningRateSpec`, and in what it differs from a training
    parse.py     from plain values, with errors that name the field

Field names, meanings and defaults are those of `protos/pyserve/v1/jobs.proto`; a test checks that they agree.
The descriptions are the short form that the command line shows. Nothing here loads torch, so the server's front
and the job control stay light.
"""

from pyserve.spec.finder import FindLearningRateSpec, JobSpec, comparable
from pyserve.spec.names import (
    APPROXIMATION_TARGETS,
    IMAGE_KERNEL_NAMES,
    OWN_FINDER,
    RESOURCE_ID,
    Augment,
    Mode,
    Precision,
    Recipe,
    Rule,
    Schedule,
    default_rule,
)
from pyserve.spec.parse import parse
from pyserve.spec.train import CHOSEN_BY_AUTO, TrainSpec, architecture_defaults

__all__ = [
    "APPROXIMATION_TARGETS",
    "CHOSEN_BY_AUTO",
    "IMAGE_KERNEL_NAMES",
    "OWN_FINDER",
    "RESOURCE_ID",
    "Augment",
    "FindLearningRateSpec",
    "JobSpec",
    "Mode",
    "Precision",
    "Recipe",
    "Rule",
    "Schedule",
    "TrainSpec",
    "architecture_defaults",
    "comparable",
    "default_rule",
    "parse",
]
