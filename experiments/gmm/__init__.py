"""A mixture of twenty clusters."""
