"""Calibration -> largest magnitude of each activation -> a Q/DQ model within an accuracy gate."""
