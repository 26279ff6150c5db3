"""Serve Jupyter, and editors that start the launcher."""
