"""Triton kernels, one file per reduction, and the pure function that chooses how each is launched."""
