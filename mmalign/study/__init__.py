"""A study: a grid of towers, fine-tuning methods, tasks and seeds, and the comparisons of them."""
