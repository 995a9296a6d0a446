"""From tensors to convolution layers: kind, order, depth, composed weights and folded normalisation."""
