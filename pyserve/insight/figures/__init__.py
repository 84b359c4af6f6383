"""Figures as PNG and SVG, from plain numbers and arrays: the same numbers give the same bytes.

    style.py       what all figures share: sizes, colours, texts, rendering
    lr_curve.py    loss against learning rate, with the suggestions
    training.py    loss, accuracy and learning rate over a training
    confusion.py   which class is taken for which
    gallery.py     pictures with what the model said about them
    filters.py     the first layer's filters

To add one: a builder decorated with `@figure(name)`; tests enumerate `FIGURES`.
"""

from __future__ import annotations

from pyserve.insight.figures.confusion import confusion_matrix
from pyserve.insight.figures.filters import filters
from pyserve.insight.figures.gallery import Tile, gallery
from pyserve.insight.figures.lr_curve import lr_curve
from pyserve.insight.figures.style import FIGURES, FigureFile
from pyserve.insight.figures.training import training_curves

__all__ = [
    "FIGURES",
    "FigureFile",
    "Tile",
    "confusion_matrix",
    "filters",
    "gallery",
    "lr_curve",
    "training_curves",
]
