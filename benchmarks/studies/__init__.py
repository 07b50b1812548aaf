"""Studies: which method gives the best network at equal measured latency, and why."""
