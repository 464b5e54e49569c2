"""Choosing samples and captions of a data set, without rewriting a tar."""
