"""Runs in the container: supervises the kernel process and passes its messages as frames."""
