"""Images as kernels need them: their Python found, and what it lacks added."""
