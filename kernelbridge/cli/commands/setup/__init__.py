"""Commands of a first hour: from nothing to a kernel that starts, and what is wrong with it."""
