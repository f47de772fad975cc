"""How many digits factors may lose by the form in which they are evaluated."""

LOST_BITS = 6
"""A form may form terms 2^6 times larger than those of the plain density: 8e-6 of relative error in float32."""
SMALL_ERROR = 1e-3
"""Rounding error of a log factorial that does not matter, in nats."""
