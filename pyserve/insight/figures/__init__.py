"""Figures as PNG and SVG, from plain numbers and arrays: the same numbers give the same bytes.

    style.py          what all figures share: sizes, colours, texts, rendering
    tiles.py          what grids of pictures share
    lr_curve.py       loss against learning rate, with the suggestions
    training.py       loss, accuracy and learning rate over a training
    confusion.py      which class is taken for which, of one model and of two
    calibration.py    how sure a model is against how often it is right
    gallery.py        pictures with what the model said about them
    pairs.py          pairs of pictures that show the same
    filters.py        the first layer's filters
    patches.py        deconvnet projections: top patches, and their evolution
    inside.py         feature maps, Grad-CAM, occlusion, one projection
    kernel.py         a small kernel, a picture, and what it makes of it
    approximation.py  stairs, and width against depth

To add one: a builder decorated with `@figure(name)`; tests enumerate `FIGURES`.
"""

from __future__ import annotations

from pyserve.insight.figures.approximation import NetworkError, Staircase, stairs, width_depth
from pyserve.insight.figures.calibration import ReliabilityBar, reliability
from pyserve.insight.figures.confusion import comparison, confusion_matrix
from pyserve.insight.figures.filters import filters
from pyserve.insight.figures.gallery import Tile, gallery
from pyserve.insight.figures.inside import deconvnet, feature_maps, grad_cam, occlusion
from pyserve.insight.figures.kernel import kernel
from pyserve.insight.figures.lr_curve import lr_curve
from pyserve.insight.figures.pairs import Pair, duplicates
from pyserve.insight.figures.patches import PatchPair, evolution, top_patches
from pyserve.insight.figures.style import FIGURES, FigureFile
from pyserve.insight.figures.training import training_curves

__all__ = [
    "FIGURES",
    "FigureFile",
    "NetworkError",
    "Pair",
    "PatchPair",
    "ReliabilityBar",
    "Staircase",
    "Tile",
    "comparison",
    "confusion_matrix",
    "deconvnet",
    "duplicates",
    "evolution",
    "feature_maps",
    "filters",
    "gallery",
    "grad_cam",
    "kernel",
    "lr_curve",
    "occlusion",
    "reliability",
    "stairs",
    "top_patches",
    "training_curves",
    "width_depth",
]
