"""What does a database look like? The explorer: a server on loopback, and the pages that it serves to a browser."""
