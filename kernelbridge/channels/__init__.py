"""Stand in for a kernel on this machine: bind its five ZMQ endpoints and speak Jupyter's protocol on them."""
