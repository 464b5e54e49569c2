"""Text tasks: readers of the publishers' files, and what a task is once it is read."""
