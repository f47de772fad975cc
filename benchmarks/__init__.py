"""Time, memory and tightness of estimates: run from the repository's root, `python -m benchmarks.steps`."""
