"""Formats of measurements, one file each."""
