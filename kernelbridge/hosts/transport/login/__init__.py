"""Log in where that takes more than a key: say how far it is, and ask a person for what it needs."""
