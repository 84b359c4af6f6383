"""What to train, on what, and how."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from pyserve.errors import InvalidArgumentError
from pyserve.spec.base import Finite, Spec, located
from pyserve.spec.names import (
    OWN_FINDER,
    RESOURCE_ID,
    Augment,
    ClassWeights,
    Optimizer,
    Precision,
    Recipe,
    Schedule,
)

LEAST_IMAGE_SIZE = 8  # pixels; some architectures need more
_DEFAULT_LEARNING_RATE = {"adamw": 1e-3, "sgd": 0.05}
_DEFAULT_WEIGHT_DECAY = {"adamw": 0.01, "sgd": 5e-4}

# What a recipe sets where the request does not, beside the defaults that the fields tell.
_RECIPE_DEFAULTS: dict[str, dict[str, Any]] = {
    "schedule": {},
    "fine_tune": {"epochs": 4, "frozen_epochs": 1, "learning_rate": 2e-3, "body_lr_factor": 0.01},
    "lesson1": {
        "epochs": 7,  # cycles of 1, 2 and 4
        "frozen_epochs": 3,
        "precompute": True,
        "lr_from": OWN_FINDER,
        "body_lr_factor": 0.01,
        "schedule": "sgdr",
        "cycle_epochs": 1,
        "cycle_mult": 2,
        "early_stopping_patience": 2,
        "tta": True,
    },
    "auto": {"tta": True},
}
# What an architecture sets, from scratch, where neither request nor recipe does: what it was made for.
_ARCHITECTURE_DEFAULTS: dict[str, dict[str, Any]] = {
    "whitenednet": {
        "batch_size": 512,
        "schedule": "slanted_triangular",
        "optimizer": "sgd",
        "momentum": 0.85,
        "weight_decay": 1.3e-3,
        "label_smoothing": 0.2,
        "augment": "crop",
        "max_shift": 1 / 16,
        "alternate_flips": True,
        "ema_decay": 0.95,
    },
}
_ARCHITECTURE_RATE = {"whitenednet": 0.75 / 512}  # of sgd, for each picture of a batch (Goyal et al. 2017)
# What `auto` chooses itself: no request may name them, and a spec without its choices does not show them.
CHOSEN_BY_AUTO = (
    "batch_size",
    "epochs",
    "frozen_epochs",
    "lr_from",
    "body_lr_factor",
    "schedule",
    "cycle_epochs",
    "cycle_mult",
    "augment",
    "freeze_body",
    "precision",
    "early_stopping_patience",
    "gradient_accumulation",
    "start_image_size",
    "precompute",
)


def architecture_defaults(name: str) -> Mapping[str, Any]:
    """What a network's training sets where the request does not, by field; nothing for most networks."""
    return _ARCHITECTURE_DEFAULTS.get(name, {})


class TrainSpec(Spec):
    """What to train, on what, and how (`pyserve.v1.TrainSpec`, which explains each field)."""

    dataset: str = Field(pattern=rf"^datasets/{RESOURCE_ID}$", description="Dataset to train on, datasets/{id}.")
    model_id: str = Field(
        default="",
        pattern=rf"^({RESOURCE_ID})?$",
        description="Name part of the model that comes out, models/{id}; default: the dataset's.",
    )
    architecture: str = Field(
        default="resnet18", min_length=1, description="Registered architecture; a wrong name's error lists all."
    )
    weights: str = Field(
        default="",
        description="'imagenet', a file under the server's weights_roots, or a model's name; default: scratch.",
    )
    image_size: int | None = Field(
        default=None,
        ge=LEAST_IMAGE_SIZE,
        le=1024,
        description="Side of the square the network sees, pixels; default: the architecture's own.",
    )
    batch_size: int = Field(default=64, ge=1, le=4096, description="Pictures per step.")
    epochs: int = Field(default=5, ge=1, le=10_000, description="Passes over the training part.")
    frozen_epochs: int = Field(
        default=0, ge=0, le=10_000, description="Epochs before those in which only the head learns."
    )
    learning_rate: Finite | None = Field(
        default=None,
        gt=0,
        le=100,
        description="Highest learning rate, the head's; default: that of lr_from, else 1e-3 (adamw), 0.05 (sgd).",
    )
    lr_from: str = Field(
        default="",
        pattern=r"^(self|jobs/[0-9a-f-]{36})?$",
        description="Learning-rate finder, jobs/{id}, whose suggestion is taken; 'self': the job finds its own.",
    )
    lr_from_policy: Literal["warn", "refuse"] = Field(
        default="warn", description="What to do where the finder's data or network differ."
    )
    body_lr_factor: Finite = Field(
        default=1.0, gt=0, le=1, description="Learning rate of the earliest layers as a fraction of the head's."
    )
    schedule: Schedule = Field(default="one_cycle", description="How the learning rate moves.")
    cycle_epochs: int | None = Field(
        default=None,
        ge=1,
        le=10_000,
        description="Length of the first cycle (sgdr, triangular, …), epochs; default: all are one cycle.",
    )
    cycle_mult: int = Field(
        default=1, ge=1, le=10, description="Each sgdr cycle is this many times as long as the one before."
    )
    optimizer: Optimizer = Field(default="adamw", description="Optimiser.")
    momentum: Finite = Field(
        default=0.9, ge=0, lt=1, description="Momentum of sgd, beta1 of adamw where the schedule does not move it."
    )
    weight_decay: Finite | None = Field(
        default=None,
        ge=0,
        le=1,
        description="Weight decay, not applied to norms and biases; default: 0.01 (adamw) or 5e-4 (sgd).",
    )
    label_smoothing: Finite = Field(default=0.0, ge=0, lt=1, description="Label smoothing, 0 ≤ s < 1.")
    augment: Augment = Field(default="standard", description="How training pictures vary (crop: for small ones).")
    freeze_body: bool = Field(default=False, description="Only the head learns, throughout.")
    freeze_batch_norm: bool | None = Field(
        default=None,
        description="BatchNorm statistics of the body stay; default: only where it came with weights.",
    )
    precision: Precision = Field(default="float32", description="Arithmetic (bfloat16: mixed precision).")
    seed: int = Field(default=0, ge=0, lt=2**31, description="Seed of everything random.")
    early_stopping_patience: int = Field(
        default=0, ge=0, description="Stop when the metric has not improved for this many epochs; 0 never does."
    )
    monitor: Literal["accuracy", "loss"] = Field(
        default="accuracy", description="Validation metric that says what is best."
    )
    gradient_clip_norm: Finite = Field(
        default=0.0, ge=0, description="Gradients are scaled down to this norm; 0 leaves them alone."
    )
    gradient_accumulation: int = Field(
        default=1, ge=1, le=1024, description="Batches whose gradients are added up before a step."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto", description="Where to train (auto: a GPU where there is one)."
    )
    recipe: Recipe = Field(
        default="schedule",
        description="What is done in which order (docs/training.md); sets other defaults for some options.",
    )
    time_budget_minutes: Finite | None = Field(
        default=None,
        gt=0,
        le=100_000,
        description="Time that recipe auto may take, from the start of the job to its model, minutes.",
    )
    start_image_size: int | None = Field(
        default=None,
        ge=LEAST_IMAGE_SIZE,
        le=1024,
        description="Progressive resizing: size in the first epoch, growing to image_size; default: image_size.",
    )
    mixup: Finite = Field(
        default=0.0, ge=0, le=100, description="Mixup: alpha of its Beta distribution, 0.4 is usual; 0: none."
    )
    cutmix: Finite = Field(
        default=0.0, ge=0, le=100, description="CutMix: alpha of its Beta distribution, 1 is usual; 0: none."
    )
    ema_decay: Finite = Field(
        default=0.0, ge=0, lt=1, description="Moving average of the weights, measured and kept; 0: none."
    )
    class_weights: ClassWeights = Field(
        default="none", description="Weight of a class in the loss (balanced: its pictures' number, inverted)."
    )
    balanced_sampling: bool = Field(
        default=False, description="Every epoch has equally many pictures of every class."
    )
    precompute: bool = Field(
        default=False, description="Frozen epochs run on activations computed once, without augmentation."
    )
    tta: bool = Field(default=False, description="Measure the model with test-time augmentation, too, at the end.")
    snapshots: bool = Field(
        default=False, description="Keep the weights after epochs 1, 2, 5, 10, …, for `pyserve evolution`."
    )
    max_shift: Finite = Field(
        default=0.125,
        gt=0,
        le=0.5,
        description="How far augment crop shifts, at most, fraction of a side.",
    )
    alternate_flips: bool = Field(
        default=False, description="What one epoch mirrors the next one does not, and the other way round."
    )

    # Validators before the fields' own run from the last to the first.
    @model_validator(mode="before")
    @classmethod
    def _fill_in_architecture(cls, values: Any) -> Any:
        """The architecture's defaults for what request and recipe leave open."""
        if not isinstance(values, Mapping) or values.get("weights"):
            return values
        defaults = architecture_defaults(str(values.get("architecture")))
        leave_out: set[str] = set(CHOSEN_BY_AUTO) if values.get("recipe") == "auto" else set()
        if values.get("optimizer", defaults.get("optimizer")) != defaults.get("optimizer"):
            leave_out |= {"optimizer", "momentum", "weight_decay"}
        return {**{name: value for name, value in defaults.items() if name not in leave_out}, **values}

    @model_validator(mode="before")
    @classmethod
    def _fill_in_recipe(cls, values: Any) -> Any:
        """The recipe's defaults for what the request leaves open."""
        if not isinstance(values, Mapping):
            return values
        defaults = _RECIPE_DEFAULTS.get(values.get("recipe", "schedule"), {})
        if values.get("lr_from"):  # then the rate is the finder's, not the recipe's
            defaults = {name: value for name, value in defaults.items() if name != "learning_rate"}
        return {**defaults, **values}

    @model_validator(mode="before")
    @classmethod
    def _leave_auto_its_choices(cls, values: Any) -> Any:
        if isinstance(values, Mapping) and values.get("recipe") == "auto":
            for name in CHOSEN_BY_AUTO:
                if name in values:
                    expected = "nothing: recipe auto chooses it from time_budget_minutes"
                    raise located(name, values[name], expected)
        return values

    @model_validator(mode="after")
    def _agree(self) -> TrainSpec:
        """Fields that must fit each other; each error names the one to change."""
        if self.recipe == "auto" and self.time_budget_minutes is None:
            raise located("time_budget_minutes", None, "a number: recipe auto plans for it")
        if self.recipe != "auto" and self.time_budget_minutes is not None:
            raise located("time_budget_minutes", self.time_budget_minutes, "nothing, or recipe auto")
        if self.recipe in ("fine_tune", "lesson1"):
            if not self.weights:
                raise located("weights", "", f"weights to begin with: recipe {self.recipe} adapts a trained body")
            if self.freeze_body:
                raise located("freeze_body", True, f"false: recipe {self.recipe} unfreezes the body")
        if self.precompute and not self.weights:
            raise located("precompute", True, "false, or weights: a body without them has nothing to tell")
        if self.start_image_size and self.image_size and self.start_image_size > self.image_size:
            raise located("start_image_size", self.start_image_size, f"≤ image_size = {self.image_size}")
        return self

    @model_serializer(mode="wrap")
    def _without_choices_to_come(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if self.recipe == "auto":
            values = {name: value for name, value in values.items() if name not in CHOSEN_BY_AUTO}
        return values

    @property
    def finds_rate_itself(self) -> bool:
        """Whether the job runs range tests of its own."""
        return self.lr_from == OWN_FINDER and self.learning_rate is None

    def image_size_or(self, native: int, least: int = LEAST_IMAGE_SIZE) -> int:
        """Side of the network's input, pixels.

        Args:
            native: the architecture's own.
            least: that it can take.

        Raises:
            InvalidArgumentError: a size is smaller than that, or `start_image_size` is larger than the other.
        """
        size = self.image_size or native
        for name, value in (("image_size", size), ("start_image_size", self.start_image_size)):
            if value and value < least:
                raise InvalidArgumentError.field(
                    name, value, f"≥ {least}, which {self.architecture} takes at least"
                )
        if self.start_image_size and self.start_image_size > size:
            raise InvalidArgumentError.field("start_image_size", self.start_image_size, f"≤ image_size = {size}")
        return size

    @property
    def dataset_id(self) -> str:
        """The dataset's name without its collection."""
        return self.dataset.split("/", 1)[1]

    @property
    def output_model_id(self) -> str:
        """The name part of the model that comes out."""
        return self.model_id or self.dataset_id

    @property
    def has_own_rate(self) -> bool:
        """Whether the network comes with a learning rate."""
        return self.optimizer == "sgd" and not self.weights and self.architecture in _ARCHITECTURE_RATE

    @property
    def effective_learning_rate(self) -> float:
        """The highest learning rate where `lr_from` plays no part."""
        if self.learning_rate:
            return self.learning_rate
        if self.has_own_rate:
            return _ARCHITECTURE_RATE[self.architecture] * self.batch_size * self.gradient_accumulation
        return _DEFAULT_LEARNING_RATE[self.optimizer]

    @property
    def effective_weight_decay(self) -> float:
        """The weight decay with the optimiser's default filled in."""
        return _DEFAULT_WEIGHT_DECAY[self.optimizer] if self.weight_decay is None else self.weight_decay

    @property
    def effective_freeze_batch_norm(self) -> bool:
        """Whether BatchNorm statistics of the body stay: by default where it came with weights."""
        return bool(self.weights) if self.freeze_batch_norm is None else self.freeze_batch_norm
