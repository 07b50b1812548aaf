"""Engines with a record of what they are, and the comparison of everything that was built."""
