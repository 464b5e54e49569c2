"""Noise and attacks for test texts, in every language: typing errors, changed words, mixed languages.

one file per perturbation -> perturb.py (examples + configuration -> noisy examples)
attack.py: a search for the change that breaks one model
"""
