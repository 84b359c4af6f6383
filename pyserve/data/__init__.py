"""Datasets: folders and archives taken in, split and checked; pictures decoded once, and augmented in batches."""
