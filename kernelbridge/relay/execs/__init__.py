"""Programs that run beside the relay, each by an exec of its own and joined to that exec's stdin and stdout."""
