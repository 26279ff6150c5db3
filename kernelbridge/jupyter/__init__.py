"""Asked by Jupyter, or by an editor that starts the launcher."""
