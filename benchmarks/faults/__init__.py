"""Damaged files of every kind, and what the product makes of them."""
