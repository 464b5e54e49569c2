"""Where pairs come from, one file per format. Each has its section, whose `read` yields them."""
