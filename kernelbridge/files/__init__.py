"""Bring the user's project folder to a host, and keep both copies in step: the workspace."""
