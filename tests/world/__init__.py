"""A simulated world: the code of both ends in one thread, at a clock that jumps, with every fault that a seed makes."""
