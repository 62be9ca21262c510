"""Whole machines: Debian systems made of packages alone, and kernels to start them with."""
