"""Which queries a database answers: its stored tables, statistics of groups, and conclusions with their tests."""
