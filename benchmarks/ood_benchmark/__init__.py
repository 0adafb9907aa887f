"""The parts of benchmarks/ood.py, in the order in which data flows through them.

sources: data sets as images; data: as embeddings; representations, classifiers: what
methods are made of; methods: all that are compared; metrics: with the bootstrap; rules:
which setting to take; evaluate: every method on one target; summary: means and errors
of all targets; tables: what is written. paper: the released script's own protocol.
"""
