"""The commands of `kernelbridge`, by subject."""
