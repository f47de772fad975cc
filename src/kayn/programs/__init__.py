"""NumPyro programs, read once: sites, traced log densities, and JAX programs cut to what is needed."""
