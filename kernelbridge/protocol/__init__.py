"""The relay's stream, for both ends of it. Pure: bytes in, frames out; standard library, Python 3.8."""
