"""Published sets that classify one or two texts: small files of our own in the publishers' formats."""

import json
from pathlib import Path

import pytest

from mmalign.core.errors import UserError
from mmalign.text.tasks.example import Example
from mmalign.text.tasks.readers import Format, read
from mmalign.text.tasks.task import Splits


def write(folder: Path, name: str, *rows: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def examples(name: Format, folder: Path) -> Splits:
    kind, splits = read(name, folder)
    assert kind == "classification"
    return splits


def test_sib200(tmp_path: Path) -> None:
    header = "index_id\tcategory\ttext"
    base = "data/annotated"
    write(tmp_path, f"{base}/swh_Latn/dev.tsv", header, '12\ttravel\t"""Twende"", alisema"')
    write(tmp_path, f"{base}/zho_Hant/test.tsv", header, "3\tsports\t跑")
    write(tmp_path, f"{base}/swh_Latn/labels.txt", "travel")
    assert examples("sib200", tmp_path) == {
        ("dev", "sw"): [Example("12", "sw", ('"Twende", alisema',), "travel")],
        ("test", "zh-Hant"): [Example("3", "zh-Hant", ("跑",), "sports")],
    }


def test_masakhanews(tmp_path: Path) -> None:
    row = 'health\tHabari\t"Mstari', 'wa pili"\thttps://example.org'
    write(tmp_path, "data/swa/test.tsv", "category\theadline\ttext\turl", *row)
    (one,) = examples("masakhanews", tmp_path)["test", "sw"]
    assert one == Example("sw-test-1", "sw", ("Habari Mstari\nwa pili",), "health")


def test_sst2_ends_without_the_space_of_the_release(tmp_path: Path) -> None:
    write(tmp_path, "SST-2/train.tsv", "sentence\tlabel", "what a bore \t0", "a joy \t1")
    write(tmp_path, "SST-2/test.tsv", "index\tsentence", "0\thidden")
    splits = examples("sst2", tmp_path)
    assert set(splits) == {("train", "en")}
    assert splits["train", "en"][1] == Example("train-2", "en", ("a joy",), "positive")


def test_cola_of_glue_and_of_its_authors(tmp_path: Path) -> None:
    write(tmp_path / "glue", "CoLA/dev.tsv", "gj04\t1\t\tIt rains.", "gj04\t0\t*\tRains it it.")
    write(tmp_path / "own", "cola_public/raw/out_of_domain_dev.tsv", 'clc95\t1\t\tHe said "no.')
    assert examples("cola", tmp_path / "glue")["dev", "en"][1].target == "0"
    assert examples("cola", tmp_path / "own") == {
        ("test", "en"): [Example("test-1", "en", ('He said "no.',), "1")]
    }


def test_imdb_takes_its_labels_from_the_folders(tmp_path: Path) -> None:
    write(tmp_path, "aclImdb/test/pos/0_10.txt", "Good.<br />Really")
    write(tmp_path, "aclImdb/test/neg/0_2.txt", "Bad.")
    write(tmp_path, "aclImdb/train/unsup/0_0.txt", "no label")
    assert examples("imdb", tmp_path) == {
        ("test", "en"): [
            Example("test-neg-0_2", "en", ("Bad.\n",), "negative"),
            Example("test-pos-0_10", "en", ("Good.\nReally\n",), "positive"),
        ]
    }


@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("yelp_polarity", '"2","say ""hi""\\nthere"'),
        ("amazon_polarity", '"2","title","say ""hi""\\nthere"'),
    ],
)
def test_reviews_of_yelp_and_amazon(tmp_path: Path, name: Format, row: str) -> None:
    write(tmp_path, "test.csv", row)
    expected = Example("test-1", "en", ('say "hi"\nthere',), "positive")
    assert examples(name, tmp_path) == {("test", "en"): [expected]}


def test_flipkart_counts_neutral_as_negative(tmp_path: Path) -> None:
    header = "product_name,product_price,Rate,Review,Summary,Sentiment"
    rows = (
        'fan,"3,999",5,super,great cooler,positive',
        "fan,9,3,fair,so so,neutral",
        "fan,9,1,,,negative",
    )
    write(tmp_path, "Dataset-SA.csv", header, *rows)
    targets = [one.target for one in examples("flipkart", tmp_path)["test", "en"]]
    assert targets == ["positive", "negative"]


def test_xlmt(tmp_path: Path) -> None:
    write(tmp_path, "data/sentiment/french/val_text.txt", "bof", "super @user")
    write(tmp_path, "data/sentiment/french/val_labels.txt", "1", "2")
    write(tmp_path, "data/sentiment/all/val_text.txt", "bof")
    assert examples("xlmt", tmp_path) == {
        ("dev", "fr"): [
            Example("fr-dev-1", "fr", ("bof",), "neutral"),
            Example("fr-dev-2", "fr", ("super @user",), "positive"),
        ]
    }
    write(tmp_path, "data/sentiment/french/val_labels.txt", "1")
    with pytest.raises(UserError, match=r"val_text.txt: 2 lines, but 1 in the file of labels"):
        read("xlmt", tmp_path)
    write(tmp_path, "data/sentiment/french/val_labels.txt", "1", "7")
    with pytest.raises(UserError, match=r"line 2: `label` is `7`; it must be one of 0, 1, 2"):
        read("xlmt", tmp_path)


def test_xnli_holds_all_languages_in_a_file(tmp_path: Path) -> None:
    header = "language\tgold_label\tsentence1\tsentence2\tpromptID\tpairID"
    rows = "de\tneutral\tA\tB\t1\t9", "sw\tneutral\tC\tD\t1\t9", "de\tcontradiction\tE\tF\t1\t10"
    write(tmp_path, "XNLI-1.0/xnli.test.tsv", header, *rows)
    splits = examples("xnli", tmp_path)
    assert splits["test", "sw"] == [Example("test-9", "sw", ("C", "D"), "neutral")]
    assert [one.id for one in splits["test", "de"]] == ["test-9", "test-10"]


def test_xtreme_pairs_leave_out_tests_without_labels(tmp_path: Path) -> None:
    write(tmp_path, "train-en.tsv", '"say ""a"""\tb\tcontradictory')
    write(tmp_path, "test-de.tsv", "a\tb")
    write(tmp_path, "test-sw.tsv", "a\tb\t1")
    assert examples("xtreme_pairs", tmp_path) == {
        ("train", "en"): [Example("train-1", "en", ('say "a"', "b"), "contradiction")],
        ("test", "sw"): [Example("test-1", "sw", ("a", "b"), "1")],
    }


def test_pawsx(tmp_path: Path) -> None:
    header = "id\tsentence1\tsentence2\tlabel"
    write(tmp_path, "x-final/de/test_2k.tsv", header, '4\tein "Haus\tNS\t0')
    write(tmp_path, "x-final/de/translated_train.tsv", header, "4\ta\tb\t1")
    splits = examples("pawsx", tmp_path)
    assert splits["test", "de"] == [Example("test-4", "de", ('ein "Haus', "NS"), "0")]
    assert splits["train", "de"][0].id == "train-4"


def test_multinli_in_both_releases(tmp_path: Path) -> None:
    row = {"gold_label": "entailment", "sentence1": "a", "sentence2": "b", "pairID": "31e"}
    undecided = {**row, "gold_label": "-"}
    name = "multinli_1.0/multinli_1.0_dev_mismatched.jsonl"
    write(tmp_path / "own", name, json.dumps(undecided), json.dumps(row))
    header = "index\tpairID\tsentence1\tsentence2\tlabel1\tgold_label"
    write(tmp_path / "glue", "MNLI/dev_matched.tsv", header, "0\t31e\ta\tb\tneutral\tentailment")
    expected = Example("test-31e", "en", ("a", "b"), "entailment")
    assert examples("mnli", tmp_path / "own") == {("test", "en"): [expected]}
    assert set(examples("mnli", tmp_path / "glue")) == {("dev", "en")}


def test_snli(tmp_path: Path) -> None:
    row = {"gold_label": "neutral", "sentence1": "a", "sentence2": "b", "pairID": "1.jpg#0"}
    write(tmp_path, "snli_1.0/snli_1.0_test.jsonl", json.dumps(row))
    (one,) = examples("snli", tmp_path)["test", "en"]
    assert (one.texts, one.target) == (("a", "b"), "neutral")
    write(tmp_path, "snli_1.0/snli_1.0_test.jsonl", json.dumps({**row, "gold_label": "maybe"}))
    with pytest.raises(UserError, match=r"line 1: `gold_label` is `maybe`; it must be one of"):
        read("snli", tmp_path)


def test_sick_in_one_file_or_without_splits(tmp_path: Path) -> None:
    columns = "pair_ID\tsentence_A\tsentence_B"
    header = f"{columns}\tentailment_label\trelatedness_score\tSemEval_set"
    rows = "1\ta\tb\tNEUTRAL\t3.3\tTRIAL", "2\tc\td\tENTAILMENT\t4.9\tTEST"
    write(tmp_path / "one", "SICK.txt", header, *rows)
    plain = f"{columns}\trelatedness_score\tentailment_judgment"
    write(tmp_path / "bare", "SICK.txt", plain, "1\ta\tb\t3.3\tCONTRADICTION")
    assert examples("sick", tmp_path / "one") == {
        ("dev", "en"): [Example("dev-1", "en", ("a", "b"), "neutral")],
        ("test", "en"): [Example("test-2", "en", ("c", "d"), "entailment")],
    }
    assert examples("sick", tmp_path / "bare")["test", "en"][0].target == "contradiction"


@pytest.mark.parametrize(
    ("name", "header", "row", "texts", "target"),
    [
        (
            "rte",
            "index\tsentence1\tsentence2\tlabel",
            "0\ta\tb\tentailment",
            ("a", "b"),
            "entailment",
        ),
        (
            "qnli",
            "index\tquestion\tsentence\tlabel",
            "0\tq\ts\tentailment",
            ("q", "s"),
            "entailment",
        ),
        ("mrpc", "Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", '1\t5\t6\t"a\tb', ('"a', "b"), "1"),
        ("qqp", "id\tquestion1\tquestion2\tis_duplicate", "1\ta\tb\t0", ("a", "b"), "0"),
    ],
)
def test_pairs_of_glue(
    tmp_path: Path, name: Format, header: str, row: str, texts: tuple[str, str], target: str
) -> None:
    write(tmp_path, f"{name.upper()}/dev.tsv", header, row)
    write(tmp_path, f"{name.upper()}/test.tsv", "index", "hidden")
    assert examples(name, tmp_path) == {("dev", "en"): [Example("dev-1", "en", texts, target)]}


def test_qqp_leaves_out_the_rows_that_the_release_broke(tmp_path: Path) -> None:
    header = "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate"
    write(tmp_path, "QQP/train.tsv", header, "1\t5\t6\ta", "?\tb?\t0", "2\t7\t8\tc?\td?\t1")
    assert [one.texts for one in examples("qqp", tmp_path)["train", "en"]] == [("c?", "d?")]


def test_hans(tmp_path: Path) -> None:
    header = "gold_label\tsentence1\tsentence2\tpairID\theuristic"
    row = "non-entailment\tThe cat saw the dog .\tThe dog saw the cat .\tex0\tlexical_overlap"
    write(tmp_path, "heuristics_evaluation_set.txt", header, row)
    (one,) = examples("hans", tmp_path)["test", "en"]
    assert (one.id, one.target) == ("test-ex0", "not_entailment")


def test_scitail(tmp_path: Path) -> None:
    write(tmp_path, "tsv_format/scitail_1.0_test.tsv", "p\th\tneutral", "p\tg\tentails")
    targets = [one.target for one in examples("scitail", tmp_path)["test", "en"]]
    assert targets == ["not_entailment", "entailment"]


def test_twitter_paraphrases_leave_out_the_debatable(tmp_path: Path) -> None:
    votes = "(3, 2)", "(2, 3)", "(0, 5)"
    write(tmp_path, "data/dev.data", *(f"1\tt\ta\tb\t{vote}\tA\tB" for vote in votes))
    write(tmp_path, "data/test.data", *(f"1\tt\ta\tb\t{grade}\tA\tB" for grade in (5, 3, 2)))
    splits = examples("pit2015", tmp_path)
    assert [(one.id, one.target) for one in splits["dev", "en"]] == [("dev-1", "1"), ("dev-3", "0")]
    assert [one.target for one in splits["test", "en"]] == ["1", "0"]


def test_adv_glue_has_a_list_for_each_task(tmp_path: Path) -> None:
    tasks = {
        "sst2": [{"idx": 0, "sentence": "dul", "label": 0}],
        "mnli-mm": [{"idx": 4, "premise": "a", "hypothesis": "b", "label": 2}],
        "qnli": [{"idx": 0, "question": "q", "sentence": "s", "label": 1}],
        "rte": "broken",
    }
    write(tmp_path, "dev.json", json.dumps(tasks))
    assert examples("adv_sst2", tmp_path)["test", "en"][0].target == "negative"
    expected = [Example("test-4", "en", ("a", "b"), "contradiction")]
    assert examples("adv_mnli_mm", tmp_path) == {("test", "en"): expected}
    assert examples("adv_qnli", tmp_path)["test", "en"][0].target == "not_entailment"
    for name in ("adv_rte", "adv_qqp"):
        with pytest.raises(UserError, match=r"dev.json: has no list of examples"):
            read(name, tmp_path)
