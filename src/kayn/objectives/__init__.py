"""Losses for `numpyro.infer.SVI`, one file an estimator."""
