"""Runnable recipes, one a task; run from a checkout: `python -m pipelines.NAME --help`."""
