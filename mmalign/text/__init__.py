"""Text tasks: robust fine-tuning on labels of one language, measured in the others."""
