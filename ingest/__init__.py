"""Where kernels come from: sources bring weight files, formats read them, extract finds the convolution layers."""
