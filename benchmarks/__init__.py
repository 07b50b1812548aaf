"""Measurements that figures in the documents rest on: not part of the package or its tests."""
