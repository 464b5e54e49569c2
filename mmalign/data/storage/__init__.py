"""Remote files: protocols, resumed downloads, and the cache that processes share."""
