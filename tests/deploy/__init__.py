"""Tests of engines on disk and of the comparison of everything that was built."""
