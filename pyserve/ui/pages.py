"""All pages: path, title, function that builds it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pyserve.ui import dataset, datasets, job, kernels, model

Build = Callable[..., Any]

PAGES: tuple[tuple[str, str, Build], ...] = (
    ("/", "Data sets and models", datasets.page),
    ("/datasets/{dataset_id}", "Data set", dataset.page),
    ("/jobs/{job_id}", "Job", job.page),
    ("/models/{model_id}", "Model", model.page),
    ("/models/{model_id}/versions/{version}", "Model", model.page),
    ("/kernels", "Image kernels", kernels.page),
)
