"""Benchmarks of risfast beside its peers: `python -m pytest bench/ --benchmark-only`, `python -m bench.compare`."""
