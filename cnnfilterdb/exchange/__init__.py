"""How data moves between databases and other tools: pull, merge, export and the papers' HDF5 layout."""
