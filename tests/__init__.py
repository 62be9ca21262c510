"""Tests; a package, so that `python -m tests.lab.demo` runs from the root of the tree."""
