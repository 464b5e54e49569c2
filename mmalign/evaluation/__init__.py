"""Measurement: what a model does on data it did not train on, with counts, intervals and chance."""
