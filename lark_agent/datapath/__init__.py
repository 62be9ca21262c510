"""The eBPF programs that count and admit every packet of a job, and the doors to their maps."""
