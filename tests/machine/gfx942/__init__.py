"""Assembly of gfx942 (CDNA3) decoded and executed."""
