"""The heads that are trained on a text tower: one file per kind of task."""
