"""AdvGLUE: attacked examples of six GLUE tasks, checked by people, in English.

dev.json: {task: [example, ...]} -> the list of one task, under the labels of its clean set
"""

from pathlib import Path
from typing import Literal

from mmalign.core.errors import UserError
from mmalign.text.tasks.example import Example
from mmalign.text.tasks.layout import matching, row_id
from mmalign.text.tasks.tables import Row, json_tree
from mmalign.text.tasks.task import Splits

AdvGlueTask = Literal["sst2", "mnli", "mnli-mm", "qnli", "qqp", "rte"]

_TASKS: dict[AdvGlueTask, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "sst2": (("sentence",), ("negative", "positive")),
    "mnli": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "mnli-mm": (("premise", "hypothesis"), ("entailment", "neutral", "contradiction")),
    "qnli": (("question", "sentence"), ("entailment", "not_entailment")),
    "qqp": (("question1", "question2"), ("0", "1")),
    "rte": (("sentence1", "sentence2"), ("entailment", "not_entailment")),
}
"""Task -> columns of the texts, names of the classes 0, 1, ..."""


def read_adv_glue(folder: Path, task: AdvGlueTask) -> Splits:
    """One task of AdvGLUE (Wang et al., NeurIPS 2021 Datasets and Benchmarks).

    The file is the publisher's `dev`, the only labelled one; nobody tunes on it: here it is a test.
    """
    columns, classes = _TASKS[task]
    names = {str(number): name for number, name in enumerate(classes)}
    splits: Splits = {}
    for path, _ in matching(folder, r"dev\.json", "dev.json"):
        trees = json_tree(path).get(task)
        if not isinstance(trees, list) or not all(isinstance(tree, dict) for tree in trees):
            raise UserError(
                f"{path}: has no list of examples `{task}`; get AdvGLUE's dev.json again"
            )
        for number, tree in enumerate(trees, start=1):
            row = Row(path, number, number, tree)  # a JSON file has no lines: the place in its list
            texts = tuple(row.cell(column) for column in columns)
            example = Example(row_id(row, "test", "idx"), "en", texts, row.renamed("label", names))
            splits.setdefault(("test", "en"), []).append(example)
    return splits
