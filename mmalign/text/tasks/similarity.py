"""Published sets that grade how alike two sentences are.

    files of STS-B, its translations, SICK -> Splits with scores as published

STS-B grades from 0 to 5, SICK from 1 to 5; correlations do not see the difference.
"""

from functools import partial
from pathlib import Path

from mmalign.text.tasks.example import Example
from mmalign.text.tasks.layout import read_rows, row_id
from mmalign.text.tasks.pairs import sick_rows, sick_texts
from mmalign.text.tasks.tables import Row, quoted, tsv
from mmalign.text.tasks.task import Splits


def read_stsb(folder: Path) -> Splits:
    """The STS benchmark (Cer et al., SemEval-2017) as GLUE ships it; its test has no scores there."""
    pattern = r"(STS-B/)?(?P<split>train|dev)\.tsv"
    return read_rows(folder, pattern, "STS-B/{train,dev}.tsv", tsv, _scored)


def read_stsb_multi_mt(folder: Path) -> Splits:
    """Machine translations of the STS benchmark (May, 2021), with all three splits; aligned by row."""
    rows = partial(quoted, columns=("sentence1", "sentence2", "score"), delimiter=",")
    pattern = r"(data/|stsbenchmark/)?stsb-(?P<lang>[a-z]{2})-(?P<split>train|dev|test)\.csv"
    return read_rows(folder, pattern, "data/stsb-<language>-{train,dev,test}.csv", rows, _scored)


def read_sick_relatedness(folder: Path) -> Splits:
    """SICK (Marelli et al., LREC 2014): its relatedness scores."""
    splits: Splits = {}
    for split, row in sick_rows(folder):
        name = row_id(row, split, "pair_ID")
        example = Example(name, "en", sick_texts(row), row.score("relatedness_score"))
        splits.setdefault((split, "en"), []).append(example)
    return splits


def _scored(row: Row, split: str, lang: str) -> Example:
    texts = (row.cell("sentence1"), row.cell("sentence2"))
    return Example(row_id(row, split), lang, texts, row.score("score"))
