"""The parts of benchmarks/speed.py.

measure: taking turns and medians; inputs: images and weights; encoders: what encodes
them; encoding, searching, fitting: the sections; tables: what is written.
"""
