"""Models written as formulas: from a line of text and a table to a NumPyro program as source."""
