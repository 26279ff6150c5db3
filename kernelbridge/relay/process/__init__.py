"""Start the kernel process, end all that it started, and tell why it ended."""
