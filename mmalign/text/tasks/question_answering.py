"""Questions whose answers are spans of a paragraph, in the JSON of SQuAD 1.1.

{"data": [{"paragraphs": [{"context", "qas": [{"id", "question", "answers"}]}]}]}
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from mmalign.core.errors import UserError
from mmalign.text.tasks.codes import NAMES
from mmalign.text.tasks.tables import json_tree
from mmalign.text.tasks.task import Answer, Entry, Example


def paragraphs(path: Path) -> Iterator[dict[str, Any]]:
    """The paragraphs of a file in SQuAD's JSON, in order.

    Raises:
        UserError: not JSON, or not of this form.
    """
    try:
        for document in json_tree(path)["data"]:
            yield from document["paragraphs"]
    except (KeyError, TypeError):
        raise UserError(
            f"{path}: not in the JSON layout of SQuAD 1.1; get the file again"
        ) from None


def correct_answers(question: dict[str, Any]) -> tuple[Answer, ...]:
    """The answers of one entry of `qas`."""
    return tuple(Answer(one["text"], one["answer_start"]) for one in question["answers"])


def questions(path: Path, parts: Mapping[str, str]) -> Iterator[Entry]:
    """One example per question of a file, under its split and language.

    Raises:
        UserError: not in SQuAD's form, or an answer is empty or not where it should be in the context.
    """
    examples, wrong = [], []
    try:
        for paragraph in paragraphs(path):
            for asked in paragraph["qas"]:
                name, context, answers = asked["id"], paragraph["context"], correct_answers(asked)
                # TyDiQA's files hold all languages; the English name of each begins its ids.
                lang = parts.get("lang") or NAMES.get(name.partition("-")[0], "en")
                place = f"{path}, question {name}"
                examples.append(Example(name, lang, (asked["question"], context), answers, place))
                # An answer elsewhere in its context would train and grade on wrong characters.
                if not answers or not all(
                    a.text
                    and type(a.start) is int
                    and a.start >= 0
                    # A negative start would count from the end of the context.
                    and context.startswith(a.text, a.start)
                    for a in answers
                ):
                    wrong.append(name)
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path}: a question without id, question, context or answers; get the file again"
        ) from None
    if wrong:
        raise UserError(
            f"{path}: {len(wrong)} of {len(examples)} questions have an answer that is empty or not at "
            f"`answer_start` (the first is {wrong[0]}); use the publisher's original file, not one that "
            "was prepared without answers"
        )
    return (((parts["split"], one.lang), one) for one in examples)
