"""From a traced program to its factor graph."""
