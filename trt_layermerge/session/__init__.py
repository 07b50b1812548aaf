"""The whole way on live objects: from a model to a merged, built and verified network."""
