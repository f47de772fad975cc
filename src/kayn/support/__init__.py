"""Small parts that know nothing of inference."""
