"""Read what OpenSSH reads: its client's config, keys and agents, known_hosts."""
