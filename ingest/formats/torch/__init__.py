"""PyTorch files: checkpoints, whole pickled modules and TorchScript."""
