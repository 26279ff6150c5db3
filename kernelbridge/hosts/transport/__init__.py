"""Move bytes to and from a machine: over SSH, or on this one."""
