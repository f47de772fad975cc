"""Rules by which axes are coupled: pure functions from a state to a changed one, or None.

`kayn.axes.choose` puts them in order.
"""
