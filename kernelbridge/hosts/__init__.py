"""Reach one machine, its engine or its cluster, and its GPUs."""
