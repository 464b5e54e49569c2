"""MECI's files: what they hold is read, whatever is broken is named by file and line."""

from pathlib import Path

import pytest

from mmalign.core.errors import UserError
from mmalign.text.tasks.formats import read
from mmalign.text.tasks.read import TaskConfig, read_task
from mmalign.text.tasks.task import Causality, Event, EventPair, Example

TEXT = "Text\tthe storm broke the old wall .\tPeople were sad ."
EVENTS = ("Event\tT1\tsad\tEVENT\t43", "Event\tT2\tstorm\tEVENT\t4", "Event\tT3\tbroke\tEVENT\t10")
RELATIONS = (
    "Relation\tT2\tT3\tCauseEffect\ttrue\tstorm\tbroke",
    "Relation\tT3\tT2\tEffectCause\ttrue\tbroke\tstorm",
    "Relation\tT1\tT2\tNoRel\ttrue\tsad\tstorm",
)


def write(folder: Path, *rows: str, name: str = "causal-en/train/one.tsvx") -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")
    return path


def test_a_document_is_sentences_events_in_order_and_unordered_pairs(tmp_path: Path) -> None:
    write(tmp_path, TEXT, *EVENTS, *RELATIONS, "")
    target = Causality(
        (Event(0, 4, 9), Event(0, 10, 15), Event(1, 12, 15)),
        (EventPair(0, 1, True), EventPair(0, 2, False)),
    )
    texts = ("the storm broke the old wall .", "People were sad .")
    expected = Example("en-train-one", "en", texts, target)
    assert read("meci", tmp_path) == ("event_causality", {("train", "en"): [expected]})
    assert [texts[e.sentence][e.start : e.end] for e in target.events] == ["storm", "broke", "sad"]


def test_a_pair_that_is_listed_twice_is_one_pair(tmp_path: Path) -> None:
    write(tmp_path, TEXT, *EVENTS, *RELATIONS, "Relation\tT2\tT1\tNoRel\ttrue\tstorm\tsad")
    (example,) = read("meci", tmp_path)[1]["train", "en"]
    assert isinstance(example.target, Causality)
    assert len(example.target.pairs) == 2


def test_languages_splits_and_one_language_alone(tmp_path: Path) -> None:
    for lang in ("en", "tr"):
        for split in ("train", "dev", "test"):
            for name in ("a", "b"):
                name_of = f"meci/causal-{lang}/{split}/{name}.tsvx"
                write(tmp_path, TEXT, *EVENTS, *RELATIONS, name=name_of)
    splits = read("meci", tmp_path)[1]
    assert {key: len(rows) for key, rows in splits.items()} == {
        (split, lang): 2 for lang in ("en", "tr") for split in ("train", "dev", "test")
    }
    ids = [one.id for rows in splits.values() for one in rows]
    assert len(set(ids)) == 12
    alone = read("meci", tmp_path / "meci" / "causal-tr")[1]
    assert alone == {key: rows for key, rows in splits.items() if key[1] == "tr"}


def test_a_task_is_trained_in_english_and_tested_in_the_others(tmp_path: Path) -> None:
    for folder in ("causal-en/train", "causal-en/dev", "causal-ur/test"):
        write(tmp_path, TEXT, *EVENTS, *RELATIONS, name=f"{folder}/a.tsvx")
    task = read_task(TaskConfig(name="meci", folder=str(tmp_path), format="meci"))
    assert (task.kind, task.targets, task.labels) == ("event_causality", ("ur",), ())
    assert list(task.dev) == ["en"]


@pytest.mark.parametrize(
    ("rows", "events", "pairs"),
    [
        ((TEXT,), 0, 0),
        ((TEXT, EVENTS[0]), 1, 0),
        ((TEXT, *EVENTS), 3, 0),
        ((TEXT, "Event\tT1\told wall\tEVENT\t20", "Event\tT2\twall\tEVENT\t24"), 2, 0),
        ((TEXT, EVENTS[1], "Event\tT9\tstorm\tEVENT\t4", "Relation\tT9\tT2\tNoRel"), 2, 1),
    ],
    ids=["no event", "one event", "no pair", "overlapping triggers", "one position twice"],
)
def test_unusual_documents_are_read(
    tmp_path: Path, rows: tuple[str, ...], events: int, pairs: int
) -> None:
    write(tmp_path, *rows)
    (example,) = read("meci", tmp_path)[1]["train", "en"]
    assert isinstance(example.target, Causality)
    assert (len(example.target.events), len(example.target.pairs)) == (events, pairs)


def test_a_language_that_no_folder_names(tmp_path: Path) -> None:
    write(tmp_path, TEXT, name="english/train/a.tsvx")
    with pytest.raises(UserError, match="its name has no language; name it causal-<language>"):
        read("meci", tmp_path / "english")
    with pytest.raises(UserError, match="holds no file of this layout"):
        read("meci", tmp_path / "english" / "train")
