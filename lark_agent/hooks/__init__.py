"""What meets the batch systems: the native wrapper and the ways jobs are named."""
