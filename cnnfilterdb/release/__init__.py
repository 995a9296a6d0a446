"""How a published database is read in place, locally or over the network, without copying it."""
