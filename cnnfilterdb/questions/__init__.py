"""What can be asked of a database: its stored tables, statistics of groups, and conclusions with their tests."""
