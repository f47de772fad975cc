"""Plated contraction in the log semiring: plan once from shapes, execute inside jit, walk back for draws."""
