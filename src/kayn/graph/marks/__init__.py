"""Which element of a latent each entry of an array reads, followed entry by entry through programs whose data are
known.

Where an index that `kayn.graph.plate_rules` cannot follow is made of data, the answer is in the numbers: every entry of
every array carries the first and the last element that it reads, primitives move and join these pairs as they move and
join numbers, and what depends on data alone is computed. Similar in spirit to the detection of sparse Jacobians by sets
of indices (`asdex`), of which two numbers suffice here: the question is whether a row reads one element.
"""
