"""How several databases and releases are read as one, each where it is."""
