"""Scenes of digits."""
