"""The real things the tests run against: a made machine with sshd, an engine and stand-in GPUs, and a laptop's home."""
