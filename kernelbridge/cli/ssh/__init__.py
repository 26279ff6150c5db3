"""The user's own ssh client, and what is built on it, into a container: no port, no key, no sshd in the image."""
