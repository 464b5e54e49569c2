"""From sources to batches: recipes write shards, the stream reads them."""
