"""Log densities that keep their digits in float32; knows nothing of programs."""
