"""Soft targets stored once, so that distilling costs what plain training costs."""

from tfdistill.targets.store import store_targets
from tfdistill.targets.stored import StoredTargets

__all__ = ["StoredTargets", "store_targets"]
