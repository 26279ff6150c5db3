"""kernelbridge: run and debug notebook cells in a GPU container on a remote host."""

__version__ = "0.1.0"


def _jupyter_server_extension_points() -> list[dict[str, object]]:
    """Called by jupyter_server where the extension is enabled."""
    # Here and not above: whoever asks for the version must not load a Jupyter server. By its name, as jupyter_server
    # itself would: the root knows none of its rooms.
    from importlib import import_module

    module = "kernelbridge.jupyter.extension"
    return [{"module": module, "app": import_module(module).KernelBridge}]
