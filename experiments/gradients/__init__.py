"""Bias and noise of gradient estimators."""
