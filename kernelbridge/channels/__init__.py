"""This machine's end of a kernel: its five ZMQ endpoints."""
