"""Models after NumPyro's examples and tests."""
