"""Sums over named axes and products over plates, planned and executed; knows nothing of NumPyro."""
