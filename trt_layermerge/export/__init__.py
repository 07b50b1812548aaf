"""Torch network -> one clean, typed ONNX model, compared with torch on real images."""
