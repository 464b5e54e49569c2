"""A page that searches a shard set: words in any language -> images, an image -> captions."""
