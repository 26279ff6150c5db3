"""Run kernels in containers of a host's Docker engine."""
