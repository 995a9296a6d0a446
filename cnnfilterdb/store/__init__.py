"""How a database folder is laid out on disk: commits, recovery, index files, annotations and verification."""
