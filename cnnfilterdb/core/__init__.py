"""What do all rooms share? The tables and their columns, file names, errors, reports, and threads."""
