"""Programs that run beside the relay, each by one exec stream: commands, files, ports."""
