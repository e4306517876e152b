"""Compiled kernels executed on a CPU, instruction by instruction; README.md says how."""
