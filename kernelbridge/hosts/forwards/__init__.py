"""Bring TCP ports of a container to this machine's loopback."""
