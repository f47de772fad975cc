"""Time, memory and tightness of estimates: run each as a module from the repository's root, `python -m benchmarks.steps`."""
