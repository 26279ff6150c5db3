"""The cards of the container: their locks, and what is seen of them."""
