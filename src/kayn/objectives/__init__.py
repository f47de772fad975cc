"""Objectives for `numpyro.infer.SVI`: one file for each estimator."""
