"""Models on disk, and the answers they give: bundles, their store, predictors."""
