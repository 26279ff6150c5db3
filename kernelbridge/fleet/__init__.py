"""All kernels of this process, and what there is on all hosts: the door for every front-end."""
