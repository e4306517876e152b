"""Formats of measurements, one file each: ``read_x(path, options)``, or a container of variables by name."""
