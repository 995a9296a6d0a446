"""Publishing a database: what may be published, a release in a folder, its card, the way to the Hugging Face Hub."""
