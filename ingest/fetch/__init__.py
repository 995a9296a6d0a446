"""Where files are downloaded from and kept: the cache, package indexes, archives and Hugging Face."""
