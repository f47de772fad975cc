"""Which latents share a particle index, over which plates, and what that costs."""
