"""What is done with weighed particles: importance weighting, QEM and training."""
