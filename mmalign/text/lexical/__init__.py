"""Targeted lexical injection: training moves words to their translations at one layer of a model."""
