"""Noise and attacks for test texts, in every language: typing errors, changed words, mixed languages."""
