"""The kinds of steps that a plan can have, a file a kind: cost, text, rule forward and rule back."""
