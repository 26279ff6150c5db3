"""Run kernels as jobs of a Slurm cluster, through its login node."""
