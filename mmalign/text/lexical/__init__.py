"""Targeted lexical injection: words of two languages are drawn together at one layer of a model."""
