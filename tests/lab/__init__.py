"""The hermetic laboratory: a small internet with one worker, for tests and for the demo."""
