"""Networks by name, their pretrained weights, heads and layer groups."""

from __future__ import annotations

from pyserve.models import networks as networks  # registers the architectures
from pyserve.models.groups import head_name, head_parameters, layer_groups
from pyserve.models.registry import (
    Architecture,
    BeginsWithPictures,
    HasRateFactors,
    architectures,
    create_model,
    get_architecture,
    register,
)
from pyserve.models.weights import WeightsReport, find_weights, load_weights, require_imagenet

__all__ = [
    "Architecture",
    "BeginsWithPictures",
    "HasRateFactors",
    "WeightsReport",
    "architectures",
    "create_model",
    "find_weights",
    "get_architecture",
    "head_name",
    "head_parameters",
    "layer_groups",
    "load_weights",
    "register",
    "require_imagenet",
]
