"""Published sets whose answers are spans of a paragraph, all in the JSON of SQuAD 1.1.

    {"data": [{"paragraphs": [{"context", "qas": [{"id", "question", "answers"}]}]}]}
        -> paragraphs -> questions, each answer checked against its context -> Splits

Questions of XQuAD and MLQA have the same id in all languages.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmalign.core.errors import UserError
from mmalign.text.tasks.codes import bcp47
from mmalign.text.tasks.example import Answer, Example
from mmalign.text.tasks.layout import add, matching, read_files
from mmalign.text.tasks.tables import json_tree
from mmalign.text.tasks.task import Splits


def read_squad(folder: Path) -> Splits:
    """SQuAD 1.1 (Rajpurkar et al., EMNLP 2016)."""
    pattern = r"(?P<split>train|dev)-v1\.1\.json"
    return read_files(folder, pattern, "{train,dev}-v1.1.json", _questions)


def read_xquad(folder: Path) -> Splits:
    """XQuAD (Artetxe et al., ACL 2020): one file a language, all of it a test."""
    splits: Splits = {}
    for path, match in matching(
        folder, r"xquad\.(?P<lang>[a-z]{2})\.json", "xquad.<language>.json"
    ):
        lang = bcp47(match["lang"])
        add(splits, "test", lang, _questions(path, "test", lang), path)
    return splits


def read_mlqa(folder: Path) -> Splits:
    """MLQA (Lewis et al., ACL 2020), where question and context are in the same language."""
    pattern = (
        r"(MLQA_V1/)?(?P<split>dev|test)/(dev|test)"
        r"-context-(?P<lang>[a-z]{2})-question-(?P=lang)\.json"
    )
    wanted = "{dev,test}/{dev,test}-context-<language>-question-<the same>.json"
    return read_files(folder, pattern, wanted, _questions)


def read_tydiqa(folder: Path) -> Splits:
    """TyDiQA-GoldP (Clark et al., TACL 2020), in the publisher's files or in XTREME's.

    The publisher's tell the language at the start of each id (`swahili-...`), XTREME's in the name.
    """
    pattern = (
        r"(.+/)?(tydiqa-goldp-v1\.1-(?P<split>train|dev)(/tydiqa-goldp-dev-[a-z]+)?"
        r"|tydiqa\.goldp\.(?P<lang>[a-z]{2})\.(?P<part>train|dev))\.json"
    )
    wanted = "tydiqa-goldp-v1.1-{train,dev}.json or tydiqa.goldp.<language>.{train,dev}.json"
    splits: Splits = {}
    for path, match in matching(folder, pattern, wanted):
        split = match["split"] or match["part"]
        by_language: dict[str, list[Example]] = {}
        for one in _questions(path, split, match["lang"] or ""):
            by_language.setdefault(one.lang, []).append(one)
        for lang, examples in by_language.items():
            add(splits, split, lang, examples, path)
    return splits


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


def right_answers(question: dict[str, Any]) -> tuple[Answer, ...]:
    """The answers of one entry of `qas`."""
    return tuple(Answer(one["text"], one["answer_start"]) for one in question["answers"])


def _questions(path: Path, split: str, lang: str) -> list[Example]:
    """An example a question; without `lang`, its language is the name before its id."""
    try:
        examples = [
            Example(
                id=question["id"],
                lang=lang or bcp47(question["id"].partition("-")[0]),
                texts=(question["question"], paragraph["context"]),
                target=right_answers(question),
            )
            for paragraph in paragraphs(path)
            for question in paragraph["qas"]
        ]
    except (KeyError, TypeError, AttributeError):
        raise UserError(
            f"{path}: a question without id, question, context or answers; get the file again"
        ) from None
    _check_answers(examples, path)
    return examples


def _check_answers(examples: list[Example], path: Path) -> None:
    wrong = [example for example in examples if not _stands(example)]
    if wrong:
        raise UserError(
            f"{path}: {len(wrong)} of {len(examples)} questions have an answer that is empty or not at "
            f"`answer_start` (the first is {wrong[0].id}); take the publisher's file as it came, not "
            "one that was prepared without answers"
        )


def _stands(example: Example) -> bool:
    """Whether there are answers and each is where it says."""
    context = example.texts[1]
    answers = [one for one in example.target if isinstance(one, Answer)]  # type: ignore[union-attr]
    return bool(answers) and all(
        one.text and context[one.start : one.start + len(one.text)] == one.text for one in answers
    )
