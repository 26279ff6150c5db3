"""Commands in an environment: beside a kernel, or in the place of one."""
