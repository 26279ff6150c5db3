"""Fail each call that our code makes of a disk, one after the other, as SQLite tests itself."""
