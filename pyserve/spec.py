"""What a job is asked to do: the one typed description that server, job store, worker and training share.

Field names, meanings and defaults are those of `protos/pyserve/v1/jobs.proto`; a test checks that they agree.
Nothing here loads torch, so the server's front and the job control stay light.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pyserve.errors import FieldViolation, InvalidArgumentError

RESOURCE_ID = r"[a-z0-9][a-z0-9_-]{0,62}"
Schedule = Literal["one_cycle", "sgdr", "triangular", "triangular2", "exp_range", "cosine", "constant"]
Optimizer = Literal["adamw", "sgd"]
Augment = Literal["none", "flip", "crop", "standard", "strong"]
Rule = Literal["valley", "steep", "slide", "minimum"]
Mode = Literal["exponential", "doubling", "linear"]

_DEFAULT_LEARNING_RATE = {"adamw": 1e-3, "sgd": 0.05}
_DEFAULT_WEIGHT_DECAY = {"adamw": 0.01, "sgd": 5e-4}

Finite = Annotated[float, Field(allow_inf_nan=False)]


class _Spec(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class TrainSpec(_Spec):
    """What to train, on what, and how (`pyserve.v1.TrainSpec`, which explains each field)."""

    dataset: str = Field(pattern=rf"^datasets/{RESOURCE_ID}$")
    model_id: str = Field(default="", pattern=rf"^({RESOURCE_ID})?$")
    architecture: str = Field(default="resnet18", min_length=1)
    weights: str = ""
    image_size: int | None = Field(default=None, ge=8, le=1024)
    batch_size: int = Field(default=64, ge=1, le=4096)
    epochs: int = Field(default=5, ge=1, le=10_000)
    frozen_epochs: int = Field(default=0, ge=0, le=10_000)
    learning_rate: Finite | None = Field(default=None, gt=0, le=100)
    lr_from: str = Field(default="", pattern=r"^(jobs/[0-9a-f-]{36})?$")
    lr_from_policy: Literal["warn", "refuse"] = "warn"
    body_lr_factor: Finite = Field(default=1.0, gt=0, le=1)
    schedule: Schedule = "one_cycle"
    cycle_epochs: int | None = Field(default=None, ge=1, le=10_000)
    cycle_mult: int = Field(default=1, ge=1, le=10)
    optimizer: Optimizer = "adamw"
    momentum: Finite = Field(default=0.9, ge=0, lt=1)
    weight_decay: Finite | None = Field(default=None, ge=0, le=1)
    label_smoothing: Finite = Field(default=0.0, ge=0, lt=1)
    augment: Augment = "standard"
    freeze_body: bool = False
    freeze_batch_norm: bool | None = None
    precision: Literal["float32", "bfloat16"] = "float32"
    seed: int = Field(default=0, ge=0, lt=2**31)
    early_stopping_patience: int = Field(default=0, ge=0)
    monitor: Literal["accuracy", "loss"] = "accuracy"
    gradient_clip_norm: Finite = Field(default=0.0, ge=0)
    gradient_accumulation: int = Field(default=1, ge=1, le=1024)
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @property
    def dataset_id(self) -> str:
        """The dataset's name without its collection."""
        return self.dataset.split("/", 1)[1]

    @property
    def output_model_id(self) -> str:
        """The name part of the model that comes out."""
        return self.model_id or self.dataset_id

    @property
    def effective_learning_rate(self) -> float:
        """The highest learning rate where `lr_from` plays no part."""
        return self.learning_rate or _DEFAULT_LEARNING_RATE[self.optimizer]

    @property
    def effective_weight_decay(self) -> float:
        """The weight decay with the optimiser's default filled in."""
        return _DEFAULT_WEIGHT_DECAY[self.optimizer] if self.weight_decay is None else self.weight_decay

    @property
    def effective_freeze_batch_norm(self) -> bool:
        """Whether BatchNorm statistics of the body stay: by default where it came with weights."""
        return bool(self.weights) if self.freeze_batch_norm is None else self.freeze_batch_norm


class FindLearningRateSpec(_Spec):
    """A learning-rate range test (`pyserve.v1.FindLearningRateSpec`, which explains each field)."""

    training: TrainSpec
    start_lr: Finite = Field(default=1e-7, gt=0)
    end_lr: Finite = Field(default=10.0, gt=0, validate_default=True)
    steps: int = Field(default=100, ge=10, le=100_000)
    mode: Mode = "exponential"
    divergence_factor: Finite = Field(default=4.0, gt=1)
    repeats: int = Field(default=1, ge=1, le=20)
    rule: Rule = "valley"

    @field_validator("end_lr")
    @classmethod
    def _end_above_start(cls, value: float, info: Any) -> float:
        start = info.data.get("start_lr")
        if start is not None and value <= start:
            raise ValueError(f"a rate above start_lr = {start:g}")
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
    return [f"{what}: {ours} here, {theirs} there" for what, (ours, theirs) in facts.items() if ours != theirs]

_LIMIT_SIGNS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<"}


def parse(model: type[_Spec], values: dict[str, Any], prefix: str) -> Any:
    """Build a spec from plain values, or say which fields are wrong.

    Args:
        model: `TrainSpec` or `FindLearningRateSpec`.
        values: field → value; absent fields take their defaults.
        prefix: the request field that holds the spec, such as "train".

    Raises:
        InvalidArgumentError: with one violation per wrong field, `train.epochs: got -1, expected ≥ 1`.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        violations = tuple(_violation(e, prefix) for e in error.errors())
        message = "; ".join(f"{v.field}: {v.description}" for v in violations)
        raise InvalidArgumentError(message, fields=violations) from None


def _violation(error: Any, prefix: str) -> FieldViolation:
    field = ".".join([prefix, *(str(part) for part in error["loc"])])
    if error["type"] == "missing":
        return FieldViolation(field, f"got nothing, expected {_expectation(error)}")
    return FieldViolation(field, f"got {_short(error['input'])}, expected {_expectation(error)}")


def _expectation(error: Any) -> str:
    kind, context = error["type"], error.get("ctx", {})
    for key, sign in _LIMIT_SIGNS.items():
        if key in context:
            return f"{sign} {context[key]}"
    if kind == "missing":
        return "a value"
    if kind == "literal_error":
        return f"one of {context['expected']}"
    if kind == "string_pattern_mismatch":
        return f"text matching {context['pattern']}"
    if kind == "finite_number":
        return "a finite number"
    if kind == "extra_forbidden":
        return "no such field"
    if kind == "value_error":
        return str(context["error"])
    return str(error["msg"][0].lower() + error["msg"][1:])


def _short(value: object, limit: int = 200) -> str:
    text = repr(value)
    return text if len(text) <= limit else f"{text[:limit]}… ({len(text)} characters)"
