"""The simulated world's counterpart in real life: real servers, every fault by a seed, for as long as one likes."""
