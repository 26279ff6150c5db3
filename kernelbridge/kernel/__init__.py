"""One kernel's life."""
