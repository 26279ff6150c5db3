"""Write the command lines that run an image inside a Slurm job: one file per runtime, each pure functions."""
