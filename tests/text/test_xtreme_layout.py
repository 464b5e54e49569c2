"""The files that XTREME's scorer reads, read back as it reads them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mmalign.core.errors import UserError
from mmalign.text.scores import Prediction
from mmalign.text.tasks.task import Answer, Example, Kind, Target, Task
from mmalign.text.xtreme_layout import FILES, write_predictions, xtreme_name


def example(one: str, target: Target, texts: tuple[str, ...] = ("x",), lang: str = "de") -> Example:
    return Example(one, lang, texts, target)


def sentences(path: Path) -> list[list[str]]:
    """Tags as the scorer takes them: stripped lines, an empty one ends a sentence."""
    found: list[list[str]] = []
    tags: list[str] = []
    for line in path.read_text().split("\n")[:-1]:
        if line.strip():
            tags.append(line.strip())
        else:
            found.append(tags)
            tags = []
    return found + ([tags] if tags else [])


def labels(path: Path) -> list[str]:
    return [line.strip() for line in path.read_text().split("\n")[:-1]]


def choices(path: Path) -> list[int]:
    return [json.loads(line)["label"] for line in path.read_text().split("\n")[:-1]]


def tree(path: Path) -> Any:
    return json.loads(path.read_text(encoding="ascii"))


READERS = {"udpos": sentences, "panx": sentences, "xcopa": choices}
READERS |= dict.fromkeys(("xquad", "mlqa", "tydiqa", "mewslix"), tree)


def write(
    folder: Path,
    name: str,
    lang: str,
    kind: Kind,
    examples: list[Example],
    predictions: list[Prediction],
    candidates: Sequence[Example] = (),
) -> Path:
    task = Task(name, kind, "en", (), [], {}, {lang: examples}, {lang: list(candidates)})
    return write_predictions(folder, name, lang, task, predictions)


RANKED = tuple(f"Q{i}" for i in range(30))
QUESTIONS = [example(one, (Answer("x", 0),)) for one in ("56be-1", "56be-2")]
WORDS = [example("0", ("O", "O"), ("Ann", "lief")), example("1", ("O",), ("Ja",))]
# task -> kind, examples, predictions, the file's name, what the scorer reads from it
CASES: dict[str, tuple[Kind, list[Example], list[Prediction], str, Any]] = {
    "xnli": (
        "classification",
        [example("0", "neutral"), example("1", "entailment")],
        ["contradiction", "entailment"],
        "xnli/test-de.tsv",
        ["contradiction", "entailment"],
    ),
    "paws-x": (
        "classification",
        [example("0", "0"), example("1", "1")],
        ["1", "0"],
        "pawsx/test-de.tsv",
        ["1", "0"],
    ),
    "xcopa": (
        "multiple_choice",
        [example("0", 0), example("1", 1)],
        [1, 0],
        "xcopa/test-de.jsonl",
        [1, 0],
    ),
    "ud_pos": (
        "tagging",
        WORDS,
        [("PROPN", "VERB"), ("INTJ",)],
        "udpos/test-de.tsv",
        [["PROPN", "VERB"], ["INTJ"]],
    ),
    "wikiann": (
        "tagging",
        WORDS,
        [("B-PER", "O"), ("O",)],
        "panx/test-de.tsv",
        [["B-PER", "O"], ["O"]],
    ),
    "mewsli-x": (
        "retrieval",
        [example("8e18", ("Q1",))],
        [RANKED],
        "mewslix/test-de.json",
        {"8e18": list(RANKED[:20])},
    ),
    "bucc2018": (
        "retrieval",
        [example("de-1", ("en-7",)), example("de-2", ()), example("de-3", ("en-9",))],
        [("en-7", "en-8"), (), ("en-8",)],
        "bucc2018/test-de.tsv",
        ["de-1\ten-7", "de-3\ten-8"],
    ),
}
for qa in ("xquad", "mlqa", "tydiqa"):
    CASES[qa] = (
        "span_qa",
        QUESTIONS,
        ["Türme", 'die "北方" Mühle'],
        f"{qa}/test-de.json",
        {"56be-1": "Türme", "56be-2": 'die "北方" Mühle'},
    )


@pytest.mark.parametrize("task", CASES)
def test_the_scorer_reads_what_was_predicted(tmp_path: Path, task: str) -> None:
    kind, examples, predictions, name, expected = CASES[task]
    path = write(tmp_path, task, "de", kind, examples, predictions)
    assert path == tmp_path / name
    assert READERS.get(path.parent.name, labels)(path) == expected


def test_every_graded_task_is_tested() -> None:
    assert {xtreme_name(task) for task in (*CASES, "tatoeba")} == set(FILES)


def test_tags_are_written_byte_for_byte_as_documented(tmp_path: Path) -> None:
    path = write(tmp_path, "panx", "de", "tagging", WORDS, [("B-PER", "O"), ("O",)])
    assert path.read_bytes() == b"B-PER\nO\n\nO\n\n"


def test_tatoeba_follows_the_sorted_english_file(tmp_path: Path) -> None:
    # Lines of the English file: b, B, " a"; sorted without the space around them: B, a, b.
    english = [
        example(f"en{i}", (f"de{i}",), (text,), "en") for i, text in enumerate(["b", "B", " a"])
    ]
    german = [example(f"de{i}", ()) for i in range(3)]
    ranked: list[Prediction] = [("de2", "de0"), ("de1",), ("de0",)]
    path = write(tmp_path, "tatoeba", "de", "retrieval", english, ranked, german)
    assert path == tmp_path / "tatoeba" / "test-de.tsv"
    assert labels(path) == ["1", "0", "2"]


def test_tatoeba_the_other_way_round_is_refused(tmp_path: Path) -> None:
    german, english = [example("de0", ("en0",))], [example("en0", (), lang="en")]
    with pytest.raises(UserError, match="from English"):
        write(tmp_path, "tatoeba", "de", "retrieval", german, [("en0",)], english)


def test_files_are_named_by_two_letters_and_replaced(tmp_path: Path) -> None:
    for label in ("neutral", "entailment"):
        path = write(
            tmp_path, "XNLI", "zh-Hans", "classification", [example("0", "neutral")], [label]
        )
    assert [one.name for one in (tmp_path / "xnli").iterdir()] == ["test-zh.tsv"]
    assert path.read_text() == "entailment\n"


def test_a_label_that_xtreme_does_not_know_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"`contradictory`.*contradiction, entailment, neutral"):
        write(tmp_path, "xnli", "de", "classification", [example("0", "x")], ["contradictory"])
    assert list(tmp_path.iterdir()) == []


def test_a_task_that_is_not_graded_is_refused(tmp_path: Path) -> None:
    assert xtreme_name("lareqa") is None
    with pytest.raises(UserError, match="`lareqa`: XTREME's scorer grades only xnli"):
        write(tmp_path, "lareqa", "de", "retrieval", [], [])


def test_another_task_of_the_same_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="kind similarity"):
        write(tmp_path, "pawsx", "de", "similarity", [example("0", 1.0)], [1.0])
