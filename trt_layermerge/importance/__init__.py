"""Candidate to score on data: what replacing one block does to the network's answers."""
