"""kayn beside NUTS on well-known data: run each as a module from the repository's root, `python -m examples.radon`."""
