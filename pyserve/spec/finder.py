"""How to look for a learning rate, and whether the one found fits a training."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from pyserve.spec.base import Finite, Spec, located
from pyserve.spec.names import Mode, Rule, default_rule
from pyserve.spec.train import TrainSpec


class FindLearningRateSpec(Spec):
    """A learning-rate range test (`pyserve.v1.FindLearningRateSpec`, which explains each field)."""

    training: TrainSpec = Field(description="The training for which the rate is sought.")
    start_lr: Finite = Field(default=1e-7, gt=0, description="First learning rate.")
    end_lr: Finite = Field(default=10.0, gt=0, validate_default=True, description="Last learning rate.")
    steps: int = Field(default=100, ge=10, le=100_000, description="Mini-batches.")
    mode: Mode = Field(default="exponential", description="How the rate grows from step to step.")
    divergence_factor: Finite = Field(
        default=4.0, gt=1, description="Stop when the smoothed loss exceeds this many times its best."
    )
    repeats: int = Field(
        default=1, ge=1, le=20, description="Runs with other seeds, for the spread of each suggestion."
    )
    rule: Rule | None = Field(
        default=None,
        description="Rule that is recommended (default: that for the training's schedule).",
    )

    @property
    def effective_rule(self) -> Rule:
        """The rule whose suggestion is recommended."""
        return self.rule or default_rule(self.training.schedule)

    @field_validator("end_lr")
    @classmethod
    def _end_above_start(cls, value: float, info: Any) -> float:
        start = info.data.get("start_lr")
        if start is not None and value <= start:
            raise ValueError(f"a rate above start_lr = {start:g}")
        return value

    @field_validator("training")
    @classmethod
    def _without_auto(cls, value: TrainSpec) -> TrainSpec:
        if value.recipe == "auto":
            raise located("recipe", "auto", "another one: auto has chosen no image size and no batch size yet")
        return value


JobSpec = TrainSpec | FindLearningRateSpec


def comparable(train: TrainSpec, finder: FindLearningRateSpec, digests: tuple[str, str]) -> list[str]:
    """In what a training differs from the range test whose learning rate it takes: a phrase each; none is well.

    Optimiser and starting weights count beside what `lr_from_policy` lists: they shift the rate as much.

    Args:
        train: the training.
        finder: the range test.
        digests: of the data that each reads (their manifests'), the training's first.
    """
    sought = finder.training
    facts: dict[str, tuple[object, object]] = {
        "data version": (digests[0][:12], digests[1][:12]),
        "image size": (train.image_size or "default", sought.image_size or "default"),
        "pictures per step": (
            train.batch_size * train.gradient_accumulation,
            sought.batch_size * sought.gradient_accumulation,
        ),
        "augmentation": (train.augment, sought.augment),
        "architecture": (train.architecture, sought.architecture),
        "weights": (train.weights or "none", sought.weights or "none"),
        "frozen body": (train.freeze_body, sought.freeze_body),
        "frozen BatchNorm": (train.effective_freeze_batch_norm, sought.effective_freeze_batch_norm),
        "optimizer": (train.optimizer, sought.optimizer),
    }
    if finder.rule is None:  # it was the schedule that chose whether the rate is one to hold or a peak
        facts["rule for the schedule"] = (default_rule(train.schedule), finder.effective_rule)
    return [f"{what}: {ours} here, {theirs} there" for what, (ours, theirs) in facts.items() if ours != theirs]
