"""Thin typed doors to the kernel; they know no jobs and import nothing from above."""
