"""Look at what Jupyter and VS Code have here, and talk to a kernel as they do."""
