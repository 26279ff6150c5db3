"""One start: where it can be, its GPUs, its container or job."""
