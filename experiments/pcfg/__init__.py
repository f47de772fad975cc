"""A probabilistic grammar."""
