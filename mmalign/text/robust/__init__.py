"""Robust training: one file per method, each with its paper; `method.py` lists them."""
