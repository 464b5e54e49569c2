"""A page that searches a shard set: words in any language -> pictures, a picture -> captions."""
