"""Fine-tuning: labels of one language on an aligned text tower, measured in the others."""
