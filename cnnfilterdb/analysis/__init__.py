"""How results are computed: groups, shifts, bases and descriptors, from tables and scans to frames."""
