"""Particles of any guide: drawn, and the density each is divided by."""
