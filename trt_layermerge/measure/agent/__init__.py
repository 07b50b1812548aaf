"""Measures a folder of jobs on a device that has Python 3.8, numpy and TensorRT, and no more.

Importing this imports the standard library only.
"""
