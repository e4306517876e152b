"""Triton kernels of risfast. They are reached only through the registered operators, never imported by users.

README.md in this folder lists them, with what the compiler made of each.
"""
