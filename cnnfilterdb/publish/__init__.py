"""Publishing a database: what may be published, a release in a folder, its card, and its upload to the Hub."""
