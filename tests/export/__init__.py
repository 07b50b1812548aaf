"""Tests of torch -> ONNX."""
