"""ONNX files: graphs, constants that are computed, and external data."""
