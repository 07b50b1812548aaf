"""One page that answers what a run achieved, what it cost, and what was not verified."""
