"""Measured numbers: results.json, metric names, statistics and comparisons."""
