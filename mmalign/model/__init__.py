"""The two towers and what joins them. No parallelism, no logging, no reading of runs."""
