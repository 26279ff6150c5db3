"""Serve the commands of the terminal: one file for each."""
