"""Bundles: everything that a target machine needs of a run, in the form that its server expects."""
