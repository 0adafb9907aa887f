"""The parts of benchmarks/ood.py, in the order in which data flows through them.

data: images to embeddings; methods: embeddings to representations; evaluate: scores of
every method; rules: which candidate to take; tables: what is written.
"""
