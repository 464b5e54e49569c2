"""A task as a configuration names it: files of one or two publishers become one task, or one sentence."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.results.protocol import sentence
from mmalign.text.tasks.layout import NoFiles
from mmalign.text.tasks.read import TaskConfig, describe, make_task, read_task
from mmalign.text.tasks.task import Example, Task

Rows = Sequence[tuple[str, str, str]]
"""(id, label, text)."""


def write(folder: Path, **files: Rows) -> Path:
    """Task files in our own layout; `train_en` is `train.en.tsv`."""
    folder.mkdir(exist_ok=True)
    for name, rows in files.items():
        lines = ["id\tlabel\ttext", *("\t".join(row) for row in rows)]
        path = folder / f"{name.replace('_', '.')}.tsv"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def rows(*labels: str, prefix: str = "") -> Rows:
    return [(f"{prefix}{i}", label, f"text {i}") for i, label in enumerate(labels)]


def config(folder: Path, **fields: Any) -> TaskConfig:
    return validate(TaskConfig, {"name": "topic", "folder": str(folder), **fields}, "x.yaml")


def task(folder: Path, **fields: Any) -> Task:
    return read_task(config(folder, **fields))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """English to train on, Swahili with a test, German with dev only."""
    return write(
        tmp_path / "task",
        train_en=rows("a", "b", "c"),
        dev_en=rows("b", prefix="d"),
        test_sw=rows("a", "c"),
        dev_sw=rows("a", prefix="d"),
        dev_de=rows("c", prefix="d"),
    )


def test_a_folder_becomes_a_task(folder: Path) -> None:
    read = task(folder)
    assert (read.name, read.kind, read.source) == ("topic", "classification", "en")
    assert read.labels == ("a", "b", "c")
    assert read.train[1] == Example("1", "en", ("text 1",), "b")
    assert list(read.tests) == ["de", "sw"] and read.targets == ("de", "sw")
    assert set(read.dev) == {"en", "sw", "de"}
    assert read.candidates == {} and read.merge == {}


def test_dev_stands_in_for_a_missing_test_but_not_that_of_the_source(folder: Path) -> None:
    read = task(folder)
    assert read.test_is_dev == {"de"}
    assert read.tests["de"] == read.dev["de"] and read.tests["sw"] != read.dev["sw"]
    write(folder, test_en=rows("a", prefix="t"))
    assert task(folder).targets == ("de", "sw") and set(task(folder).tests) == {"de", "en", "sw"}


def test_another_language_can_be_the_source(folder: Path) -> None:
    write(folder, train_sw=rows("a", "b", "c"))
    read = task(folder, language="sw")
    assert {one.lang for one in read.train} == {"sw"}
    assert read.targets == ("de", "en")


def test_only_the_wanted_languages_are_tested(folder: Path) -> None:
    assert list(task(folder, languages=["sw"]).tests) == ["sw"]
    with pytest.raises(UserError, match=r"asks for `fr`, which has no test .*; there are de, sw"):
        task(folder, languages=["sw", "fr"])
    with pytest.raises(
        UserError, match="asks for `en`"
    ):  # it has dev alone, which chooses the epoch
        task(folder, languages=["en"])


def test_training_files_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    tests = write(tmp_path / "tests", test_fr=rows("a"), dev_en=rows("c", prefix="t"))
    read = task(tests, train={"folder": str(folder)})
    assert len(read.train) == 3 and list(read.tests) == ["fr"]
    assert [one.id for one in read.dev["en"]] == [
        "d0"
    ]  # of the training files: they choose the epoch
    (folder / "dev.en.tsv").unlink()
    assert [one.id for one in task(tests, train={"folder": str(folder)}).dev["en"]] == ["t0"]


def test_files_that_were_read_make_the_same_task(folder: Path) -> None:
    splits = {("train", "en"): [Example("1", "en", ("x",), "a")]}
    splits["test", "sw"] = [Example("2", "sw", ("y",), "a")]
    made = make_task(config(folder), ("classification", splits), ("classification", splits))
    assert made.train == splits["train", "en"] and made.tests == {"sw": splits["test", "sw"]}


def test_training_and_tests_must_ask_the_same(folder: Path, tmp_path: Path) -> None:
    scores = tmp_path / "scores"
    scores.mkdir()
    (scores / "test.sw.tsv").write_text("sentence1\tsentence2\tscore\nx\ty\t1.5\n")
    with pytest.raises(
        UserError, match=r"holds classification examples, .* similarity ones; train on"
    ):
        task(scores, train={"folder": str(folder)})


def test_relabel_gives_labels_of_tests_another_name(folder: Path) -> None:
    write(folder, test_sw=rows("A", "c"))
    with pytest.raises(
        UserError, match=r"sw has the label `A` \(id 0\), which training lacks; .*relabel"
    ):
        task(folder)
    read = task(folder, relabel={"A": "a", "a": "b"})
    assert [one.target for one in read.tests["sw"]] == ["a", "c"]  # once, not again and again
    assert read.labels == ("a", "b", "c")  # training keeps its own


def test_merge_lets_tests_be_coarser(folder: Path) -> None:
    write(folder, test_sw=rows("a", "not_a"), dev_de=rows("a", prefix="d"))
    read = task(folder, merge={"b": "not_a", "c": "not_a"})
    assert read.merge == {"b": "not_a", "c": "not_a"}
    with pytest.raises(UserError, match="sw has the label `not_a`"):
        task(folder)


def test_a_label_of_dev_that_training_lacks_is_named(folder: Path) -> None:
    write(folder, dev_en=rows("z"))
    with pytest.raises(UserError, match="en has the label `z`"):
        task(folder)


def test_what_is_missing_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(NoFiles, match="no such task folder"):
        task(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no training file for `fr` .*some for en"):
        task(folder, language="fr")
    alone = write(tmp_path / "alone", train_en=rows("a"), dev_en=rows("a"))
    with pytest.raises(UserError, match="nothing to test on") as caught:
        task(alone)
    assert "\n" not in str(caught.value)


def test_retrieval_needs_no_training(tmp_path: Path) -> None:
    (tmp_path / "sw-en.tsv").write_text("text\tenglish\nmbwa\ta dog\npaka\ta cat\n")
    read = task(tmp_path, format="tatoeba")
    assert read.kind == "retrieval" and read.train == [] and read.labels == ()
    assert [one.texts for one in read.candidates["sw"]] == [("a dog",), ("a cat",)]
    assert read.tests["sw"][1].target == (read.candidates["sw"][1].id,)
    assert "Each query searches the candidates of its language (sw (2))" in sentence(describe(read))


def test_dev_rows_can_be_taken_from_the_training_file(tmp_path: Path) -> None:
    lines = "".join(f"{i}\t{'ab'[i % 2]}\ttext {i}\n" for i in range(40))
    for name in ("train.en.tsv", "dev.en.tsv", "dev.sw.tsv"):
        (tmp_path / name).write_text(f"id\tlabel\ttext\n{lines}")
    read = task(tmp_path, dev_examples=10, train_examples=20)
    trained, dev = ({one.id for one in rows} for rows in (read.train, read.dev["en"]))
    assert len(trained) == 20 and len(dev) == 10 and trained.isdisjoint(dev)
    # More rows for training leave the dev rows what they are.
    assert read.dev["en"] == task(tmp_path, dev_examples=10).dev["en"]
    assert len(task(tmp_path, dev_examples=10).train) == 30
    assert len(task(tmp_path).dev["en"]) == 40
    with pytest.raises(UserError, match="`dev_examples` takes 40 of the 40 training rows in `en`"):
        task(tmp_path, dev_examples=40)


def numbered(count: int, start: int = 0, prefix: str = "") -> Rows:
    return [(f"{prefix}{i}", "ab"[i % 2], f"text {i}") for i in range(start, start + count)]


def test_translations_of_held_out_rows_are_not_trained_on(tmp_path: Path) -> None:
    shared = {f"train_{lang}": numbered(40) for lang in ("en", "de", "sw")}
    folder = write(tmp_path / "task", **shared, test_sw=numbered(9, prefix="t"))
    read = task(folder, dev_examples=10, train_languages=["de", "sw"])
    held_out = {one.id for one in read.dev["en"]}
    assert len(held_out) == 10 and held_out.isdisjoint(one.id for one in read.train)
    assert [sum(one.lang == lang for one in read.train) for lang in ("en", "de", "sw")] == [30] * 3
    # A sample is drawn from what is left.
    few = task(folder, dev_examples=10, train_languages=["de"], train_examples=20)
    assert len(few.train) == 40 and held_out.isdisjoint(one.id for one in few.train)
    # Rows of the training files as shots.
    shots = {"examples": 25, "split": "train"}
    read = task(folder, dev_examples=10, few_shot=shots)
    assert {one.id for one in read.dev["en"]} == held_out
    assert sum(one.lang == "sw" for one in read.train) == 25
    assert held_out.isdisjoint(one.id for one in read.train)
    chosen = sorted(held_out, key=int)[:1]
    write(folder, train_de=[(chosen[0], "a", "allein")])
    with pytest.raises(UserError, match=r"every training row in `de` has the id .*`dev_examples`"):
        task(folder, dev_examples=10, train_languages=["de"])


def test_parallel_texts_accept_every_text_that_stands_beside_the_query(tmp_path: Path) -> None:
    (tmp_path / "en-sw.tsv").write_text(
        "en\ttranslation\nhome\tnyumba\nhouse\tnyumba\nhome\tkwao\n"
    )
    (tmp_path / "en-fr.tsv").write_text("id\ten\tfr\n7\thouse\tmaison\n")
    read = task(tmp_path, format="parallel")
    assert [one.texts for one in read.candidates["sw"]] == [("home",), ("house",)]
    home, house = (one.id for one in read.candidates["sw"])
    assert [(one.id, one.texts, one.target) for one in read.tests["sw"]] == [
        ("1", ("nyumba",), (home, house)),
        ("3", ("kwao",), (home,)),
    ]
    assert read.tests["fr"][0].texts == ("maison",)
    (tmp_path / "en-de.tsv").write_text("en\tsv\na\tb\n")
    with pytest.raises(UserError, match=r"en-de.tsv, line 2: needs the columns `en` and `de`"):
        task(tmp_path, format="parallel")


def test_shared_words_are_taken_out_of_both_sides(tmp_path: Path) -> None:
    (tmp_path / "en-es.tsv").write_text(
        "en\tes\n"
        "José Obama's 12 dogs sleep\tLos perros de jose Obama duermen 3 horas\n"
        "The tax\tEl taxi\n"  # three letters of one word begin the other: not the same word
        "Madrid!\tMadrid!\n"  # nothing is left of it
    )
    read = task(tmp_path, format="parallel", without_shared_words=True)
    assert [one.texts[0] for one in read.tests["es"]] == ["Los perros de duermen horas", "El taxi"]
    assert [one.texts[0] for one in read.candidates["es"]] == ["dogs sleep", "The tax"]
    assert "taken out of both" in sentence(describe(read))
    (tmp_path / "train.en.tsv").write_text("label\ttext\na\tb\n")
    (tmp_path / "dev.fr.tsv").write_text("label\ttext\na\tb\n")
    (tmp_path / "en-es.tsv").unlink()
    with pytest.raises(UserError, match="`without_shared_words` is for retrieval"):
        task(tmp_path, without_shared_words=True)


def test_a_retrieval_task_searches_the_first_candidates_and_keeps_what_they_answer(
    tmp_path: Path,
) -> None:
    (tmp_path / "en-es.tsv").write_text(
        "en\tes\none\tuno\ntwo\tdos\nthree\ttres\nfirst\tuno\n"  # `uno` has a second right one
    )
    read = task(tmp_path, format="parallel", candidates=2)
    assert [one.texts[0] for one in read.candidates["es"]] == ["one", "two"]
    assert {one.texts[0]: one.target for one in read.tests["es"]} == {
        "uno": ("es-en-1",),
        "dos": ("es-en-2",),
    }
    (tmp_path / "train.en.tsv").write_text("label\ttext\na\tb\n")
    (tmp_path / "dev.fr.tsv").write_text("label\ttext\na\tb\n")
    (tmp_path / "en-es.tsv").unlink()
    with pytest.raises(UserError, match="`candidates` is for retrieval"):
        task(tmp_path, candidates=2)


def test_describe_tells_new_items_from_known_ones(folder: Path) -> None:
    assert "Trained on 3 `en` rows with 3 labels" in sentence(describe(task(folder)))
    assert "3 of 3 test rows show an item that is trained on: 2 by id, 3 by equal text" in sentence(
        describe(task(folder))
    )
    assert "Every tested item (id) is trained on" in sentence(
        describe(task(folder, languages=["sw"]))
    )
    known = sentence(describe(task(folder, languages=["de"])))
    assert "1 of 1 test rows show an item that is trained on: 0 by id, 1 by equal text" in known
    (folder / "dev.de.tsv").write_text("id\tlabel\ttext\nd0\tc\tganz neu\n")
    both_new = sentence(describe(task(folder, languages=["de"])))
    assert "both the item and the language are new" in both_new
    assert "The dev split stands in for a missing test split: de." in both_new
    assert "stands in" not in sentence(describe(task(folder, languages=["sw"])))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"format": "xnil"}, r"`format` is 'xnil'"),
        ({"name": "a/b"}, r"`name` is 'a/b'"),
        ({"relable": {}}, "unknown key `relable`; did you mean `relabel`"),
        ({"train": {"format": "tsv"}}, r"`train\.folder` is missing"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused(fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        config(Path("x"), **fields)


def test_a_language_may_be_spelled_in_any_way_in_files_and_fields(folder: Path) -> None:
    (folder / "test.sw.tsv").rename(folder / "test.SWA.tsv")
    read = task(folder, language="EN", languages=["Sw", "de"])
    assert (read.source, list(read.tests)) == ("en", ["de", "sw"])


def test_several_languages_can_be_trained_on(folder: Path) -> None:
    write(folder, train_de=rows("c", "a"))
    read = task(folder, train_languages=["de"])
    assert [(one.lang, one.target) for one in read.train][2:] == [
        ("en", "c"),
        ("de", "c"),
        ("de", "a"),
    ]
    assert read.source == "en" and read.targets == ("de", "sw")
    facts = describe(read)
    assert facts["trained_on"].startswith("3 `en` rows and 2 `de` rows")
    assert facts["labelled"] == ["de"] and "labels in training too (de)" in sentence(facts)
    assert "labelled" not in describe(task(folder))
    with pytest.raises(UserError, match=r"no training file for `sw`.*some for de, en"):
        task(folder, train_languages=["sw"])


def test_few_rows_of_each_language_are_trained_on_and_never_tested(folder: Path) -> None:
    labels = ("a", "b", "c", "a")
    files = {f"dev_{lang}": rows(*labels, prefix="d") for lang in ("en", "sw", "de")}
    write(folder, **files)
    read = task(folder, few_shot={"examples": 2})
    shots = {lang: {one.id for one in read.train if one.lang == lang} for lang in ("de", "sw")}
    assert shots["de"] == shots["sw"] and len(shots["de"]) == 2  # the same ids in all
    assert len(read.train) == 3 + 4
    # German is tested on its dev rows: on those that are left.
    assert {one.id for one in read.tests["de"]} == {f"d{i}" for i in range(4)} - shots["de"]
    # English dev rows choose the weights.
    assert all({one.id for one in read.dev[lang]}.isdisjoint(shots["sw"]) for lang in ("en", "sw"))
    assert len(read.tests["sw"]) == 2
    assert describe(read)["labelled"] == ["de", "sw"]
    with pytest.raises(UserError, match=r"takes 4 rows of dev in `de`, which has 4; lower"):
        task(folder, few_shot={"examples": 4})


def test_no_language_is_tested_or_checked_on_an_item_of_few_shot(tmp_path: Path) -> None:
    folder = write(
        tmp_path / "task",
        train_en=numbered(20, prefix="r"),
        dev_en=numbered(30),
        dev_sw=numbered(30),
        dev_de=numbered(30, start=10),  # not the same items, so other ones are drawn
        dev_fr=numbered(30),
    )
    read = task(folder, few_shot={"examples": 4}, languages=["de", "sw"])
    shots = {one.id for one in read.train if one.lang != "en"}
    assert len(shots) > 4
    # English dev rows choose the weights; those of French serve nothing here.
    for rows in (*read.dev.values(), *read.tests.values()):
        assert rows and shots.isdisjoint(one.id for one in rows)
    assert len(read.dev["en"]) == 30 - len(shots & {str(i) for i in range(30)})
    write(folder, dev_en=[row for row in numbered(30) if row[0] in shots])
    with pytest.raises(UserError, match=r"takes the ids of all dev rows in `en`"):
        task(folder, few_shot={"examples": 4}, languages=["de", "sw"])
    write(folder, test_en=[row for row in numbered(30) if row[0] in shots])
    with pytest.raises(UserError, match=r"takes the ids of all tested rows in `en`"):
        task(folder, few_shot={"examples": 4}, languages=["de", "en", "sw"])
