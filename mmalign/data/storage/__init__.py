"""Bytes of a file, wherever it lies: local, at a URL, or in the cache."""
