"""The daemon on each worker."""
