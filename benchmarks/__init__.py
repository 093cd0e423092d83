"""Benchmarks: `python -m benchmarks --help`, or `make bench-quick` and `make bench CORPUS=DIR`."""
