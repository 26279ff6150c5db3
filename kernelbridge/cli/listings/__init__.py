"""What `kernelbridge ps` and `gpus` show, and how it is found in the time of one ssh command."""
