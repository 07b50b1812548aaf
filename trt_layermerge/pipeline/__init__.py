"""The stages in order, each skipped while its inputs are unchanged."""
