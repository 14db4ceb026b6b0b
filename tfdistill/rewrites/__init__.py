"""Students made of what LiteRT computes in 8 bits, equal to the ones that came."""

from tfdistill.rewrites.rewriter import IDENTITY, Rewritten, rewrite

__all__ = ["IDENTITY", "Rewritten", "rewrite"]
