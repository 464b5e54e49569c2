"""Shards: plain webdataset tars with an index and a manifest; how they are made, indexed and read."""
