"""Read and check what the user wrote: the config file."""
