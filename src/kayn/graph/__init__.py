"""Structure discovery: from a NumPyro program to a factor graph."""
