"""What do all rooms share? Errors, the tables and their columns, file names, texts of SQL, reports, and threads."""
