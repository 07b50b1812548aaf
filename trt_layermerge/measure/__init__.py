"""Latency: specs timed one by one, networks timed whole, and the one predicted from the other."""
