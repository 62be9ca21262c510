"""LARK's experiments (CCGrid 2015), repeated with the real agent; see docs/experiments.md."""
