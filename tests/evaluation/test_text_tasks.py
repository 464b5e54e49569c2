"""Task files are read as they are or refused by file and line; accuracies are counted by hand."""

import json
from pathlib import Path

import numpy as np
import pytest

from mmalign.batch import TaskRow
from mmalign.errors import UserError
from mmalign.evaluation.results import Results
from mmalign.evaluation.text_tasks import (
    Outcome,
    add_accuracies,
    deal_ids,
    describe,
    hits,
    interval_over_ids,
    majority_share,
    read_rows,
    read_transfer,
)

HEADER = "id\tlabel\ttext\n"


def write(folder: Path, **files: str) -> Path:
    """`train_en="..."` becomes train.en.tsv with a header."""
    for name, body in files.items():
        (folder / f"{name.replace('_', '.')}.tsv").write_text(HEADER + body, encoding="utf-8")
    return folder


def small_task(folder: Path) -> Path:
    return write(
        folder,
        train_en="1\ta\tone\n2\tb\ttwo\n",
        dev_en="3\ta\tthree\n",
        dev_de="3\ta\tdrei\n",
        test_de="1\ta\teins\n2\tb\tzwei\n",
        dev_sw="3\ta\ttatu\n",
    )


def outcome(lang: str, values: dict[str, float], label: str = "a") -> Outcome:
    rows = [TaskRow("t", "test", lang, one, label, "x") for one in values]
    return Outcome(rows, np.array(list(values.values())))


def test_quotes_and_strange_line_breaks_are_part_of_the_text(tmp_path: Path) -> None:
    text = '"a" quote\u2028and\x85more \x0b\'"'
    write(tmp_path, train_en=f"1\ta\t{text}\n")
    assert read_rows(tmp_path, "t")["train", "en"] == [TaskRow("t", "train", "en", "1", "a", text)]


def test_windows_line_ends_a_byte_order_mark_and_a_missing_last_line_end(tmp_path: Path) -> None:
    (tmp_path / "test.pt-BR.tsv").write_bytes(
        b"\xef\xbb\xbfid\tlabel\ttext\r\n1\ta\tum\r\n2\tb\tdois"
    )
    rows = read_rows(tmp_path, "t")["test", "pt-BR"]
    assert [(row.id, row.label, row.text) for row in rows] == [("1", "a", "um"), ("2", "b", "dois")]


def test_jsonl_says_the_same_as_tsv(tmp_path: Path) -> None:
    row = {"id": "1", "label": "a", "text": "tab\tand\nline", "more": 1}
    (tmp_path / "test.sw.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    expected = TaskRow("t", "test", "sw", "1", "a", "tab\tand\nline")
    assert read_rows(tmp_path, "t") == {("test", "sw"): [expected]}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("test.de.tsv", "1\ta\tx\n", "line 1: the header"),
        ("test.de.tsv", HEADER + "1\ta\tx\n2\tb\n", "line 3: 2 columns"),
        ("test.de.tsv", HEADER + "1\ta\tx\ty\n", "line 2: 4 columns"),
        ("test.de.tsv", HEADER + "1\t\tx\n", "line 2: `label`"),
        ("test.de.tsv", HEADER + "1\ta\t \n", "line 2: `text`"),
        ("test.de.tsv", HEADER + "\n1\ta\tx\n", "line 2: 1 columns"),
        ("test.de.tsv", HEADER, "holds no rows"),
        ("test.de.jsonl", '{"id": "1", "label": "a", "text": "x"}\n{"id": "2"}\n', "line 2: not a"),
        ("test.de.jsonl", '{"id": 1, "label": "a", "text": "x"}\n', "line 1: `id`"),
        ("test.de.jsonl", "[1]\n", "line 1: not a"),
        ("validation.de.tsv", HEADER, "not the name of a task file"),
        ("test.d_e.tsv", HEADER, "not the name of a task file"),
    ],
)
def test_what_is_broken_is_named(tmp_path: Path, name: str, content: str, words: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=words) as raised:
        read_rows(tmp_path, "t")
    assert name in str(raised.value)


def test_other_encodings_and_second_files_are_refused(tmp_path: Path) -> None:
    small_task(tmp_path)
    (tmp_path / "test.de.jsonl").write_text('{"id": "1", "label": "a", "text": "x"}\n')
    with pytest.raises(UserError, match=r"second file for test\.de"):
        read_rows(tmp_path, "t")
    (tmp_path / "test.de.jsonl").unlink()
    (tmp_path / "test.fr.tsv").write_bytes((HEADER + "1\ta\té\n").encode("latin-1"))
    with pytest.raises(UserError, match=r"test\.fr\.tsv: not UTF-8"):
        read_rows(tmp_path, "t")


def test_tests_are_test_files_or_else_dev_files_of_other_languages(tmp_path: Path) -> None:
    (small_task(tmp_path) / "README.md").write_text("not a task file")
    task = read_transfer(tmp_path, "t", "en")
    assert task.labels == ("a", "b")
    assert [row.id for row in task.dev] == ["3"]
    chosen = {lang: rows[0].split for lang, rows in task.tests["clean"].items()}
    assert chosen == {"de": "test", "sw": "dev"}  # the English dev rows choose the epoch: no test
    assert task.targets == ("de", "sw")
    write(tmp_path, test_en="9\ta\tnine\n")
    assert read_transfer(tmp_path, "t", "en").targets == ("de", "sw")
    assert list(read_transfer(tmp_path, "t", "en").tests["clean"]) == ["de", "en", "sw"]
    assert list(read_transfer(tmp_path, "t", "en", ["sw"]).tests["clean"]) == ["sw"]


def test_what_a_task_lacks_is_named_with_what_it_has(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such task folder"):
        read_transfer(tmp_path / "nowhere", "t", "en")
    small_task(tmp_path)
    with pytest.raises(UserError, match=r"no train\.fr\.tsv.* training file: en$"):
        read_transfer(tmp_path, "t", "fr")
    with pytest.raises(UserError, match=r"asks for `yo`.* there are de, sw$"):
        read_transfer(tmp_path, "t", "en", ["de", "yo"])
    write(tmp_path, test_de="1\ta\teins\n2\tzebra\tzwei\n")
    with pytest.raises(UserError, match=r"test\.de has the label `zebra` \(id 2\).* are a, b$"):
        read_transfer(tmp_path, "t", "en")


def test_a_task_without_another_language_is_refused(tmp_path: Path) -> None:
    write(tmp_path, train_en="1\ta\tone\n", dev_en="1\ta\tone\n", test_en="1\ta\tone\n")
    with pytest.raises(UserError, match="other than `en`"):
        read_transfer(tmp_path, "t", "en")


def test_folds_part_the_shared_ids_and_hold_them_out_everywhere(tmp_path: Path) -> None:
    body = "".join(f"{i}\t{'ab'[i % 2]}\tword{i}\n" for i in range(20))
    write(tmp_path, train_en=body + "99\ta\tonly\n", dev_en=body, test_de=body)
    task = read_transfer(tmp_path, "t", "en").with_variant("loud", lambda rows: rows)
    folds = deal_ids(task, 5, seed=0)
    assert sorted(one for fold in folds for one in fold) == sorted(str(i) for i in range(20))
    for fold in folds:
        assert sorted(int(one) % 2 for one in fold) == [0, 0, 1, 1]  # each label's share
        part = task.hold_out(fold)
        assert fold.isdisjoint(row.id for row in part.train + part.dev)
        assert "99" in {row.id for row in part.train}
        for variant in ("clean", "loud"):
            assert {row.id for row in part.tests[variant]["de"]} == fold
    assert folds == deal_ids(task, 5, seed=0) != deal_ids(task, 5, seed=1)
    with pytest.raises(UserError, match="`folds` is 21, but only 20"):
        deal_ids(task, 21, seed=0)


def test_the_protocol_says_whether_the_items_are_new(tmp_path: Path) -> None:
    write(tmp_path, train_en="1\ta\tone\n2\tb\ttwo\n", test_de="1\ta\teins\n2\tb\tzwei\n")
    assert "transfer between languages, not to new items" in describe(
        read_transfer(tmp_path, "t", "en")
    )
    write(tmp_path, test_de="7\ta\tsieben\n")
    assert "both the item and the language are new" in describe(read_transfer(tmp_path, "t", "en"))
    write(tmp_path, dev_sw="1\ta\tmoja\n8\ta\tnane\n")
    words = describe(read_transfer(tmp_path, "t", "en"))
    assert "1 of 3 test rows" in words and "missing test split: sw." in words


def test_hits_and_majority_share() -> None:
    assert hits(np.array([1, 2, 0]), np.array([1, 0, 0])).tolist() == [1.0, 0.0, 1.0]
    rows = outcome("de", {"1": 1.0, "2": 0.0}).rows + outcome("de", {"3": 1.0}, "b").rows
    assert majority_share(rows) == pytest.approx(2 / 3)


def test_the_mean_weighs_languages_alike_and_leaves_the_source_out() -> None:
    results = Results("s", {})
    outcomes = {
        "en": outcome("en", {"1": 1.0, "2": 1.0}),
        "de": outcome("de", {"1": 1.0, "2": 0.0, "3": 0.0, "4": 0.0}),
        "sw": outcome("sw", {"1": 1.0}),
    }
    add_accuracies(results, "t", "en", {"clean": outcomes})
    assert results.metrics == {
        "text/t/en/clean/accuracy": 1.0,
        "text/t/de/clean/accuracy": 0.25,
        "text/t/sw/clean/accuracy": 1.0,
        "text/t/mean/clean/accuracy": 0.625,
    }
    assert results.counts["text/t/mean/clean/accuracy"] == 5
    assert set(results.ci95) == set(results.chance) == set(results.metrics)


def test_copies_of_a_language_do_not_narrow_the_interval() -> None:
    values = {str(i): float(i % 3 == 0) for i in range(60)}
    one = interval_over_ids([outcome("de", values)])
    five = interval_over_ids([outcome(lang, values) for lang in ("ar", "de", "fr", "sw", "yo")])
    assert one == pytest.approx(five)
    assert one[0] < 1 / 3 < one[1]
