"""Feed readers of other people's bytes with what nobody would send."""
