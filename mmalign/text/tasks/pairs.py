"""Published sets that classify two texts: inference and paraphrase.

    files of XNLI, MultiNLI, SNLI, SICK, RTE, QNLI, HANS, SciTail -> entailment, ... -+
    files of PAWS-X, MRPC, QQP, PIT-2015                          -> 1 or 0          -+-> Splits

Inference is `entailment`, `neutral` and `contradiction`, or `entailment` and `not_entailment` in
sets of two classes, whatever the publisher's spelling. In paraphrase 1 means the same and 0 does
not. So a model trained on one set can be tested on another.
"""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from mmalign.text.tasks.codes import bcp47
from mmalign.text.tasks.example import Example
from mmalign.text.tasks.layout import SPLIT, add, matching, read_rows, row_id
from mmalign.text.tasks.tables import Row, jsonl, lines, quoted, table, tsv
from mmalign.text.tasks.task import Splits

_THREE_WAY = {
    "entailment": "entailment",
    "neutral": "neutral",
    "contradiction": "contradiction",
    "contradictory": "contradiction",  # so XNLI's translated training files
}
_TWO_WAY = {"entailment": "entailment", "not_entailment": "not_entailment"}
_YES_NO = {"0": "0", "1": "1"}
_NO_MAJORITY = "-"  # the annotators of SNLI and MultiNLI did not agree: everyone leaves these out


def read_xnli(folder: Path) -> Splits:
    """XNLI 1.0 (Conneau et al., EMNLP 2018): all languages in one file; pairs are aligned by pairID."""
    pattern = r"(XNLI-1\.0/)?xnli\.(?P<split>dev|test)\.tsv"
    splits: Splits = {}
    for path, match in matching(folder, pattern, "XNLI-1.0/xnli.{dev,test}.tsv"):
        for row in tsv(path):
            lang, split = bcp47(row.text("language")), match["split"]
            label = row.renamed("gold_label", _THREE_WAY)
            example = Example(
                row_id(row, split, "pairID"), lang, _texts(row, "sentence1", "sentence2"), label
            )
            splits.setdefault((split, lang), []).append(example)
    return splits


def read_xtreme_pairs(folder: Path) -> Splits:
    """XNLI or PAWS-X as XTREME prepares them: quoted, no header; pairs are aligned by row.

    XTREME takes the labels out of its test files; such a file is left out. Those of Robust-XLT
    (arXiv 2104.08645), in the same layout, have them.
    """

    def read(path: Path, split: str, lang: str) -> Iterator[Example]:
        for row in quoted(path, columns=("sentence1", "sentence2", "label")):
            label = row.text("label").strip()
            texts = _texts(row, "sentence1", "sentence2")
            yield Example(row_id(row, split), lang, texts, _THREE_WAY.get(label, label))

    pattern = r"(?P<split>train|dev|test)-(?P<lang>[a-z]{2,3})\.tsv"
    splits: Splits = {}
    for path, match in matching(folder, pattern, "{train,dev,test}-<language>.tsv"):
        split, lang = match["split"], bcp47(match["lang"])
        first = next(iter(lines(path)), "")
        if split != "test" or first.count("\t") == 2:
            add(splits, split, lang, read(path, split, lang), path)
    return splits


def read_pawsx(folder: Path) -> Splits:
    """PAWS-X (Yang et al., EMNLP 2019); pairs are aligned by id.

    Sentences that were not translated stand as `NS` in the release and are kept, as in XTREME.
    """

    def make(row: Row, split: str, lang: str) -> Example:
        texts = _texts(row, "sentence1", "sentence2")
        return Example(row_id(row, split, "id"), lang, texts, row.renamed("label", _YES_NO))

    pattern = r"(x-final/)?(?P<lang>[a-z]{2})/(?P<split>train|translated_train|dev_2k|test_2k)\.tsv"
    wanted = "x-final/<language>/{train,translated_train,dev_2k,test_2k}.tsv"
    return read_rows(folder, pattern, wanted, tsv, make)


def read_mnli(folder: Path) -> Splits:
    """MultiNLI 1.0 (Williams et al., NAACL 2018), the authors' JSON lines or GLUE's tables.

    Matched is the development set, mismatched (other genres) the test, as in GLUE-X.
    """
    pattern = (
        r"(multinli_1\.0/multinli_1\.0_|multinli_1\.0_|MNLI/)?"
        r"(?P<split>train|dev_matched|dev_mismatched)\.(jsonl|tsv)"
    )
    wanted = "multinli_1.0_{train,dev_matched,dev_mismatched}.jsonl or MNLI/{train,...}.tsv"
    return read_rows(folder, pattern, wanted, table, _three_way)


def read_snli(folder: Path) -> Splits:
    """SNLI 1.0 (Bowman et al., EMNLP 2015)."""
    pattern = r"(snli_1\.0/)?snli_1\.0_(?P<split>train|dev|test)\.jsonl"
    return read_rows(folder, pattern, "snli_1.0_{train,dev,test}.jsonl", jsonl, _three_way)


def read_sick(folder: Path) -> Splits:
    """SICK (Marelli et al., LREC 2014): its three-way entailment."""
    splits: Splits = {}
    for split, row in sick_rows(folder):
        column = next((name for name in _SICK_LABELS if name in row.cells), _SICK_LABELS[0])
        names = {name.upper(): name for name in ("entailment", "neutral", "contradiction")}
        example = Example(
            row_id(row, split, "pair_ID"), "en", sick_texts(row), row.renamed(column, names)
        )
        splits.setdefault((split, "en"), []).append(example)
    return splits


def sick_rows(folder: Path) -> Iterator[tuple[str, Row]]:
    """(split, row) of SICK, from the one file with the column SemEval_set or the three of SemEval.

    A file without either is all test: GLUE-X tests on the whole of SICK.
    """
    pattern = r"(SICK/)?SICK(_(?P<split>train|trial|test_annotated))?\.txt"
    wanted = "SICK.txt or SICK_{train,trial,test_annotated}.txt"
    for path, match in matching(folder, pattern, wanted):
        for row in tsv(path):
            yield SPLIT[match["split"] or row.cells.get("SemEval_set", "test")], row


def sick_texts(row: Row) -> tuple[str, ...]:
    """The two sentences of a row of SICK."""
    return _texts(row, "sentence_A", "sentence_B")


def read_rte(folder: Path) -> Splits:
    """RTE as GLUE ships it."""
    return _read_glue(folder, "RTE", ("sentence1", "sentence2"), "label", _TWO_WAY)


def read_qnli(folder: Path) -> Splits:
    """QNLI as GLUE ships it: does the sentence answer the question?"""
    return _read_glue(folder, "QNLI", ("question", "sentence"), "label", _TWO_WAY)


def read_mrpc(folder: Path) -> Splits:
    """MRPC as GLUE ships it."""
    return _read_glue(folder, "MRPC", ("#1 String", "#2 String"), "Quality", _YES_NO)


def read_qqp(folder: Path) -> Splits:
    """Quora Question Pairs as GLUE ships them; rows that the release broke are left out."""
    columns = ("question1", "question2")
    return _read_glue(folder, "QQP", columns, "is_duplicate", _YES_NO, skip_broken=True)


def read_hans(folder: Path) -> Splits:
    """HANS (McCoy et al., ACL 2019); its evaluation set is the test."""
    names = {"entailment": "entailment", "non-entailment": "not_entailment"}

    def make(row: Row, split: str, lang: str) -> Example:
        texts = _texts(row, "sentence1", "sentence2")
        return Example(row_id(row, split, "pairID"), lang, texts, row.renamed("gold_label", names))

    pattern = r"heuristics_(?P<split>train|evaluation)_set\.txt"
    return read_rows(folder, pattern, "heuristics_{train,evaluation}_set.txt", tsv, make)


def read_scitail(folder: Path) -> Splits:
    """SciTail (Khot et al., AAAI 2018); what it calls neutral is all that is not entailed."""
    names = {"entails": "entailment", "neutral": "not_entailment"}

    def make(row: Row, split: str, lang: str) -> Example:
        texts = _texts(row, "premise", "hypothesis")
        return Example(row_id(row, split), lang, texts, row.renamed("label", names))

    rows = partial(tsv, columns=("premise", "hypothesis", "label"))
    pattern = r"(SciTailV1\.1/)?(tsv_format/)?scitail_1\.0_(?P<split>train|dev|test)\.tsv"
    wanted = "tsv_format/scitail_1.0_{train,dev,test}.tsv"
    return read_rows(folder, pattern, wanted, rows, make)


def read_pit2015(folder: Path) -> Splits:
    """Twitter paraphrases (Xu et al., SemEval-2015 task 1), the debatable pairs left out.

    Five votes `(yes, no)` in training and development, an expert's grade of 0 to 5 in the test; the
    readme of the release says which of them count as what.
    """
    names = {"(5, 0)": "1", "(4, 1)": "1", "(3, 2)": "1", "(1, 4)": "0", "(0, 5)": "0"}
    names |= {"5": "1", "4": "1", "2": "0", "1": "0", "0": "0"}
    debatable = ("(2, 3)", "3")

    def make(row: Row, split: str, lang: str) -> Example | None:
        if row.text("label") in debatable:
            return None
        texts = _texts(row, "sentence1", "sentence2")
        return Example(row_id(row, split), lang, texts, row.renamed("label", names))

    columns = ("topic_id", "topic", "sentence1", "sentence2", "label", "tags1", "tags2")
    rows = partial(tsv, columns=columns)
    pattern = r"(data/)?(?P<split>train|dev|test)\.data"
    return read_rows(folder, pattern, "data/{train,dev,test}.data", rows, make)


_SICK_LABELS = ("entailment_label", "entailment_judgment")


def _three_way(row: Row, split: str, lang: str) -> Example | None:
    if row.text("gold_label") == _NO_MAJORITY:
        return None
    label = row.renamed("gold_label", _THREE_WAY)
    texts = _texts(row, "sentence1", "sentence2")
    return Example(row_id(row, split, "pairID"), lang, texts, label)


def _read_glue(
    folder: Path,
    name: str,
    columns: tuple[str, str],
    label: str,
    names: Mapping[str, str],
    skip_broken: bool = False,
) -> Splits:
    """The train and dev files of a GLUE task; GLUE's test files have no labels."""

    def make(row: Row, split: str, lang: str) -> Example:
        return Example(row_id(row, split), lang, _texts(row, *columns), row.renamed(label, names))

    rows = partial(tsv, skip_broken=skip_broken)
    pattern = rf"({name}/)?(?P<split>train|dev)\.tsv"
    return read_rows(folder, pattern, f"{name}/{{train,dev}}.tsv", rows, make)


def _texts(row: Row, *columns: str) -> tuple[str, ...]:
    return tuple(row.cell(column) for column in columns)
