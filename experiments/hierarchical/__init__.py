"""Hierarchical models and chains."""
