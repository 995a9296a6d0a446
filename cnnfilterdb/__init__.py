"""A database of the kernels of trained convolutional networks."""
