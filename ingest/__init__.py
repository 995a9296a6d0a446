"""Where kernels come from: sources provide weight files, formats read them, extract finds the convolution layers."""
