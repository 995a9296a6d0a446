"""How the stored filters are read: parallel scans, in order, and the search for the nearest kernels."""
