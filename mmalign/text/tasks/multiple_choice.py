"""Published sets that offer two or three answers, one of which is right.

    files of COPA, XCOPA, Social IQa -> (premise and question, answer, answer, ...) -> Splits

The context is the premise and the question, parted by a space. COPA and XCOPA name their question
by one word: it becomes `What was the cause?` or `What was the effect?`, in English in all
languages, as in XTREME (google-research/xtreme, run_xcopa.py).
"""

from collections.abc import Iterator
from pathlib import Path

from mmalign.core.errors import UserError
from mmalign.text.tasks.example import Example
from mmalign.text.tasks.layout import read_files, read_rows, row_id
from mmalign.text.tasks.tables import Row, jsonl, lines
from mmalign.text.tasks.task import Splits

_QUESTION = {"cause": "What was the cause?", "effect": "What was the effect?"}
_ANSWERS = ("answerA", "answerB", "answerC")


def read_xcopa(folder: Path) -> Splits:
    """XCOPA (Ponti et al., EMNLP 2020), as published.

    XTREME's prepared test files have 0 for every label; their names differ, and they are not read.
    """
    pattern = r"(data/)?(?P<lang>[a-z]{2})/(?P<split>val|test)\.[a-z]{2}\.jsonl"
    wanted = "data/<language>/{val,test}.<language>.jsonl"
    return read_rows(folder, pattern, wanted, jsonl, _copa)


def read_copa(folder: Path) -> Splits:
    """COPA (Roemmele et al., 2011) as SuperGLUE ships it; its test file has no labels there."""
    pattern = r"(COPA/)?(?P<split>train|val)\.jsonl"
    return read_rows(folder, pattern, "COPA/{train,val}.jsonl", jsonl, _copa)


def read_social_iqa(folder: Path) -> Splits:
    """Social IQa (Sap et al., EMNLP 2019), in either form of its release.

    `socialIQa_v1.4_{trn,dev}.jsonl` holds the letter of the right answer; `{train,dev}.jsonl` has a
    file of numbers from 1 beside it.
    """

    def read(path: Path, split: str, lang: str) -> Iterator[Example]:
        rows = list(jsonl(path))
        numbers = _right_letters(rows) if "v1.4" in path.name else _right_numbers(path, len(rows))
        for row, right in zip(rows, numbers, strict=True):
            context = f"{row.cell('context')} {row.cell('question')}"
            answers = tuple(row.cell(column) for column in _ANSWERS)
            yield Example(row_id(row, split), lang, (context, *answers), right)

    pattern = r"(socialIQa_v1\.4/|socialiqa-train-dev/)?(socialIQa_v1\.4_)?(?P<split>trn|train|dev)\.jsonl"
    wanted = "socialIQa_v1.4_{trn,dev}.jsonl or {train,dev}.jsonl with {train,dev}-labels.lst"
    return read_files(folder, pattern, wanted, read)


def _copa(row: Row, split: str, lang: str) -> Example:
    question = row.renamed("question", _QUESTION)
    texts = (f"{row.cell('premise')} {question}", row.cell("choice1"), row.cell("choice2"))
    right = int(row.renamed("label", {"0": "0", "1": "1"}))
    return Example(row_id(row, split, "idx"), lang, texts, right)


def _right_letters(rows: list[Row]) -> list[int]:
    return [int(row.renamed("correct", {"A": "0", "B": "1", "C": "2"})) for row in rows]


def _right_numbers(path: Path, count: int) -> list[int]:
    labels = path.with_name(f"{path.stem}-labels.lst")
    numbers = [line.strip() for line in lines(labels)]
    if len(numbers) != count or not set(numbers) <= {"1", "2", "3"}:
        raise UserError(
            f"{labels}: must hold {count} lines of 1, 2 or 3, one for each of {path.name}"
        )
    return [int(number) - 1 for number in numbers]
