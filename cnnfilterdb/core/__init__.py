"""What do all rooms share? The tables and their columns, file names, reports, and threads."""
