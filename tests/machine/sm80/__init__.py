"""PTX for sm_80 read, checked and executed on a CPU."""
