"""What runs an image inside a Slurm job: one file per runtime, each pure functions from a spec to command lines."""
