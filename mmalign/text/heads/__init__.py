"""What stands on a text tower when it is fine-tuned: one file a kind of task."""
