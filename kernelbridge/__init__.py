"""kernelbridge: run and debug notebook cells in a GPU container on a remote host."""


def _jupyter_server_extension_points() -> list[dict[str, object]]:
    """Called by jupyter_server where the extension is enabled."""
    # Here and not above: whoever asks for the version must not load a Jupyter server.
    from kernelbridge.jupyter.extension import KernelBridge

    return [{"module": "kernelbridge.jupyter.extension", "app": KernelBridge}]
