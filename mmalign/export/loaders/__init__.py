"""One stand-alone program a library: how an exported folder is loaded where mmalign is not installed.

    python sentence_transformers_texts.py FOLDER PROBES OUT.npz

PROBES is a folder of `texts.json` (a list of strings) and pictures whose names start with a number, either of
which may be absent. OUT.npz gets `texts` (n, D) and `images` (m, D), float32. None of these programs imports
mmalign or another of them: `verify.py` runs them in clean processes, and people may copy them.
"""
