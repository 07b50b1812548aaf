"""Tests of ``trt_layermerge.merge``."""
