"""Our own layout, for every set that has none: one file a split and language.

    <folder>/<train, dev or test>.<lang>.{tsv,jsonl} -> columns tell the kind -> Splits

A TSV file has a header line and no quoting; a JSONL file has one object a line with the same names
as keys. The kind of task follows from the columns (others are not looked at):

    text, label                                                        classification
    premise, hypothesis, label  or  sentence1, sentence2, label        classification of pairs
    sentence1, sentence2, score                                        similarity

Rows with the same `id` say the same in different languages. Without an `id` column, row n of a
split is the same in every language.
"""

import re
from pathlib import Path

from mmalign.core.errors import UserError
from mmalign.core.languages import is_language_code
from mmalign.text.tasks.example import Example
from mmalign.text.tasks.layout import read_rows, row_id
from mmalign.text.tasks.tables import Row, table
from mmalign.text.tasks.task import Kind, Splits

_NAME = r"(?P<split>train|dev|test)\.(?P<lang>[^./]+)\.(tsv|jsonl)"
_TEXTS = (("text",), ("premise", "hypothesis"), ("sentence1", "sentence2"))


def read_plain(folder: Path) -> Splits:
    """The examples of every task file in `folder`.

    Raises:
        UserError: no such folder, no task file, a file whose name, columns or lines are not as they
            must be, or two files for one split and language.
    """
    if folder.is_dir():
        _check_names(folder)
    return read_rows(folder, _NAME, "<train, dev or test>.<language>.{tsv,jsonl}", table, _example)


def kind_of(splits: Splits) -> Kind:
    """Classification or similarity, from the targets.

    Raises:
        UserError: some files have labels and others scores.
    """
    kinds = {isinstance(one.target, float) for examples in splits.values() for one in examples}
    if len(kinds) > 1:
        raise UserError("some task files have the column `label` and others `score`; part them")
    return "similarity" if kinds == {True} else "classification"


def _check_names(folder: Path) -> None:
    """A file with a typing error in its name would otherwise be left out in silence."""
    for path in sorted(folder.iterdir()):
        match = re.fullmatch(_NAME, path.name)
        is_task_file = match is not None and is_language_code(match["lang"])
        if path.suffix in (".tsv", ".jsonl") and not is_task_file:
            raise UserError(
                f"{path}: not the name of a task file; call it <train, dev or test>.<language>.tsv"
            )


def _example(row: Row, split: str, lang: str) -> Example:
    texts = next((columns for columns in _TEXTS if columns[0] in row.cells), None)
    if texts is None or not {"label", "score"} & row.cells.keys():
        raise row.error(
            "has the columns "
            f"{', '.join(row.cells)}; a task needs `text` and `label`, `premise`, `hypothesis` and "
            "`label`, or `sentence1`, `sentence2` and `label` or `score`"
        )
    return Example(
        id=row.name("id") if "id" in row.cells else row_id(row, split),
        lang=lang,
        texts=tuple(row.text(column) for column in texts),
        target=row.name("label") if "label" in row.cells else row.score("score"),
    )
