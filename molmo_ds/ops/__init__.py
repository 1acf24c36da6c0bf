"""Kernels: each file holds the plain-torch reference, then the fast version, then its registration."""
