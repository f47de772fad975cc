"""Exponential families: the contract that they share, and their members."""
