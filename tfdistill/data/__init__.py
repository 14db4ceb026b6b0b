"""Data sets by name, and a look at the user's own before anything is trained on it."""

from tfdistill.data.datasets import Dataset, RandomShiftAndFlip, load_dataset

__all__ = ["Dataset", "RandomShiftAndFlip", "load_dataset"]
