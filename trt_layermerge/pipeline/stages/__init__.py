"""One file per stage: what it reads, what else decides its outcome, and what it writes."""
