"""Bilingual dictionaries: word lists as the publishers write them."""
