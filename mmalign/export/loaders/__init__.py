"""One stand-alone program per library: how an exported folder is loaded where mmalign is not installed.

    python load_sentence_transformers.py FOLDER PROBES OUT.npz

PROBES is a folder of `texts.json` (a list of strings) and images (`000.image` and on). OUT.npz gets `texts`
(n, D) and, where the format holds an image tower, `images` (m, D), float32; of a trunk alone `states` (n, F).
None of these programs imports mmalign or another of them: `verify.py` runs them in clean processes, and users
may copy them.
"""
