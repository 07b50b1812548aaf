"""Tests mirror the package; run from the repository root."""
