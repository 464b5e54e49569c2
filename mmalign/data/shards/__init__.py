"""Shards: webdataset tars with an index and a manifest, written, indexed and read."""
