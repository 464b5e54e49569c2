"""From shards to the batches of a step, in an order that any number of ranks shares."""
