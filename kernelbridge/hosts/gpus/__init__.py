"""Find the GPUs of a host, and choose which of them a start may take."""
