"""Similarity, multiple choice, tagging, questions and retrieval in the publishers' formats."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmalign.core.errors import UserError
from mmalign.text.tasks.example import Answer, Example
from mmalign.text.tasks.readers import Format, read


def write(folder: Path, name: str, *rows: str) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{row}\n" for row in rows), encoding="utf-8")


def write_json(folder: Path, name: str, *rows: dict[str, Any]) -> None:
    write(folder, name, *(json.dumps(row, ensure_ascii=False) for row in rows))


def test_stsb_of_glue(tmp_path: Path) -> None:
    header = "index\tgenre\tsentence1\tsentence2\tscore"
    write(tmp_path, "STS-B/dev.tsv", header, '0\tnews\ta "b\tc\t2.500')
    expected = {("dev", "en"): [Example("dev-1", "en", ('a "b', "c"), 2.5)]}
    assert read("stsb", tmp_path) == ("similarity", expected)


def test_stsb_in_other_languages(tmp_path: Path) -> None:
    write(tmp_path, "data/stsb-de-test.csv", '"Ein Hund, der bellt.",Ein Hund.,3.2')
    expected = Example("test-1", "de", ("Ein Hund, der bellt.", "Ein Hund."), 3.2)
    assert read("stsb_multi_mt", tmp_path) == ("similarity", {("test", "de"): [expected]})


def test_sick_relatedness(tmp_path: Path) -> None:
    header = "pair_ID\tsentence_A\tsentence_B\trelatedness_score\tentailment_judgment"
    write(tmp_path, "SICK_test_annotated.txt", header, "6\ta\tb\t3.3\tNEUTRAL")
    expected = {("test", "en"): [Example("test-6", "en", ("a", "b"), 3.3)]}
    assert read("sick_relatedness", tmp_path) == ("similarity", expected)


def copa(**changes: Any) -> dict[str, Any]:
    row = {
        "premise": "P.",
        "choice1": "one",
        "choice2": "two",
        "question": "cause",
        "label": 1,
        "idx": 3,
    }
    return {**row, **changes}


def test_xcopa_takes_the_original_not_the_translation_into_english(tmp_path: Path) -> None:
    write_json(tmp_path, "data/sw/val.sw.jsonl", copa(), copa(question="effect", label=0, idx=4))
    write_json(tmp_path, "data-gmt/sw/val.sw.jsonl", copa(premise="translated"))
    kind, splits = read("xcopa", tmp_path)
    assert kind == "multiple_choice"
    assert splits == {
        ("dev", "sw"): [
            Example("dev-3", "sw", ("P. What was the cause?", "one", "two"), 1),
            Example("dev-4", "sw", ("P. What was the effect?", "one", "two"), 0),
        ]
    }


def test_copa_has_no_labels_in_its_test(tmp_path: Path) -> None:
    write_json(tmp_path, "COPA/train.jsonl", copa())
    write_json(tmp_path, "COPA/test.jsonl", {"premise": "P."})
    assert set(read("copa", tmp_path)[1]) == {("train", "en")}
    write_json(tmp_path, "COPA/train.jsonl", copa(), copa(question="why"))
    with pytest.raises(UserError, match=r"train.jsonl, line 2: `question` is `why`"):
        read("copa", tmp_path)


def test_social_iqa_with_letters_or_with_a_file_of_numbers(tmp_path: Path) -> None:
    row = {"context": "C.", "question": "Q?", "answerA": "a", "answerB": "b", "answerC": "c"}
    write_json(tmp_path / "new", "socialIQa_v1.4/socialIQa_v1.4_trn.jsonl", {**row, "correct": "C"})
    write_json(tmp_path / "old", "dev.jsonl", row, row)
    write(tmp_path / "old", "dev-labels.lst", "3", "1")
    expected = Example("train-1", "en", ("C. Q?", "a", "b", "c"), 2)
    assert read("social_iqa", tmp_path / "new")[1] == {("train", "en"): [expected]}
    assert [one.target for one in read("social_iqa", tmp_path / "old")[1]["dev", "en"]] == [2, 0]
    write(tmp_path / "old", "dev-labels.lst", "3")
    with pytest.raises(UserError, match=r"dev-labels.lst: must hold 2 lines of 1, 2 or 3"):
        read("social_iqa", tmp_path / "old")


def conllu(number: str, word: str, tag: str) -> str:
    return "\t".join([number, word, "_", tag, *"______"])


def test_conllu_skips_ranges_and_empty_nodes_and_joins_treebanks(tmp_path: Path) -> None:
    first = conllu("1-2", "du", "_"), conllu("1", "de", "ADP"), conllu("2", "le", "DET")
    ellipsis = conllu("2.1", "va", "VERB")
    write(tmp_path, "UD_French-A/fr_a-ud-test.conllu", "# text = du", *first, ellipsis, "")
    write(tmp_path, "UD_French-B/fr_b-ud-test.conllu", conllu("1", "oui", "INTJ"))
    kind, splits = read("conllu", tmp_path)
    assert kind == "tagging"
    assert splits == {
        ("test", "fr"): [
            Example("a-test-1", "fr", ("de", "le"), ("ADP", "DET")),
            Example("b-test-1", "fr", ("oui",), ("INTJ",)),
        ]
    }
    write(tmp_path, "fr_c-ud-test.conllu", "", "1\tmot")
    with pytest.raises(UserError, match=r"fr_c-ud-test.conllu, line 2: 2 columns; CoNLL-U has 10"):
        read("conllu", tmp_path)


def test_wikiann(tmp_path: Path) -> None:
    write(tmp_path, "sw/dev", "sw:Dar\tB-LOC", "sw:es:Salaam\tI-LOC", "", "sw:leo\tO", "")
    kind, splits = read("wikiann", tmp_path)
    assert kind == "tagging"
    assert splits["dev", "sw"] == [
        Example("sw-dev-1", "sw", ("Dar", "es:Salaam"), ("B-LOC", "I-LOC")),
        Example("sw-dev-2", "sw", ("leo",), ("O",)),
    ]
    write(tmp_path, "sw/test", "Dar\tB-LOC")
    with pytest.raises(UserError, match=r"test, line 1: `Dar` has no language before it"):
        read("wikiann", tmp_path)


def test_xtreme_tags_leave_out_tests_without_tags(tmp_path: Path) -> None:
    write(tmp_path, "dev-de.tsv", "Haus\tNOUN", "", "geht\tVERB")
    write(tmp_path, "test-de.tsv", "Haus", "", "geht")
    splits = read("xtreme_tags", tmp_path)[1]
    assert set(splits) == {("dev", "de")}
    assert [one.texts for one in splits["dev", "de"]] == [("Haus",), ("geht",)]
    write(tmp_path, "dev-de.tsv", "Haus\tNOUN", "Hof")
    with pytest.raises(UserError, match=r"dev-de.tsv, line 2: 1 columns; write a word and its tag"):
        read("xtreme_tags", tmp_path)


def squad(
    question: str = "q1", start: int = 4, text: str = "cat", **more: Any
) -> dict[str, list[dict[str, list[dict[str, Any]]]]]:
    asked = {
        "id": question,
        "question": "Who sat?",
        "answers": [{"text": text, "answer_start": start}],
    }
    return {
        "data": [{"paragraphs": [{"context": "The cat sat. A dog ran.", "qas": [asked], **more}]}]
    }


def answered(name: str, lang: str) -> Example:
    return Example(name, lang, ("Who sat?", "The cat sat. A dog ran."), (Answer("cat", 4),))


@pytest.mark.parametrize(
    ("name", "file", "key"),
    [
        ("squad", "dev-v1.1.json", ("dev", "en")),
        ("xquad", "xquad.hi.json", ("test", "hi")),
        ("mlqa", "MLQA_V1/test/test-context-vi-question-vi.json", ("test", "vi")),
        ("tydiqa", "tydiqa.goldp.ko.dev.json", ("dev", "ko")),
    ],
)
def test_questions_in_the_json_of_squad(
    tmp_path: Path, name: Format, file: str, key: tuple[str, str]
) -> None:
    write_json(tmp_path, file, squad())
    assert read(name, tmp_path) == ("span_qa", {key: [answered("q1", key[1])]})


def test_mlqa_reads_equal_languages_only(tmp_path: Path) -> None:
    write_json(tmp_path, "dev/dev-context-en-question-en.json", squad())
    write_json(tmp_path, "dev/dev-context-en-question-de.json", squad())
    assert set(read("mlqa", tmp_path)[1]) == {("dev", "en")}


def test_tydiqa_tells_its_language_in_the_id(tmp_path: Path) -> None:
    both = squad("swahili-1-2")["data"] + squad("english-3-4")["data"]
    write_json(tmp_path, "tydiqa-goldp-v1.1-train.json", {"data": both})
    name = "tydiqa-goldp-v1.1-dev/tydiqa-goldp-dev-korean.json"
    write_json(tmp_path, name, squad("korean-5-6"))
    assert read("tydiqa", tmp_path)[1] == {
        ("train", "sw"): [answered("swahili-1-2", "sw")],
        ("train", "en"): [answered("english-3-4", "en")],
        ("dev", "ko"): [answered("korean-5-6", "ko")],
    }


@pytest.mark.parametrize("change", [{"start": 5}, {"text": "", "start": 0}])
def test_an_answer_that_does_not_stand_there_is_counted_and_named(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    trees = squad("good")["data"] + squad("bad", **change)["data"]
    write_json(tmp_path, "xquad.en.json", {"data": trees})
    with pytest.raises(UserError, match=r"xquad.en.json: 1 of 2 questions .*the first is bad"):
        read("xquad", tmp_path)


@pytest.mark.parametrize("tree", [{}, {"data": [{}]}, {"data": [{"paragraphs": [{"qas": [{}]}]}]}])
def test_another_json_is_refused(tmp_path: Path, tree: dict[str, Any]) -> None:
    write_json(tmp_path, "xquad.en.json", tree)
    with pytest.raises(UserError, match=r"xquad.en.json: .*get the file again"):
        read("xquad", tmp_path)


def test_tatoeba_of_laser_and_as_a_table(tmp_path: Path) -> None:
    write(tmp_path / "laser", "tatoeba.swh-eng.swh", "Habari.", "Asante.")
    write(tmp_path / "laser", "tatoeba.swh-eng.eng", "News.", "Thanks.")
    write(tmp_path / "table", "sw-en.tsv", "text\tenglish", "Habari.\tNews.", "Asante.\tThanks.")
    for folder in ("laser", "table"):
        kind, splits = read("tatoeba", tmp_path / folder)
        assert kind == "retrieval"
        assert splits["test", "sw"][1] == Example("sw-2", "sw", ("Asante.",), ("sw-en-2",))
        found = Example("sw-en-2", "en", ("Thanks.",), ("sw-en-2",))
        assert splits["candidates", "sw"][1] == found
    write(tmp_path / "laser", "tatoeba.swh-eng.eng", "News.")
    with pytest.raises(UserError, match=r"2 lines, but 1 in the English file"):
        read("tatoeba", tmp_path / "laser")


def test_tatoeba_refuses_a_second_file_for_a_language(tmp_path: Path) -> None:
    write(tmp_path, "sw-en.tsv", "text\tenglish", "Habari.\tNews.")
    write(tmp_path, "tatoeba.swh-eng.swh", "Habari.")
    write(tmp_path, "tatoeba.swh-eng.eng", "News.")
    with pytest.raises(UserError, match="a second file for `sw`; keep one of them"):
        read("tatoeba", tmp_path)


def test_lareqa_finds_the_sentence_in_every_language(tmp_path: Path) -> None:
    breaks = [[0, 12], [13, 23]]
    write_json(tmp_path, "xquad-r/en.json", squad("q", sentence_breaks=breaks))
    write_json(tmp_path, "xquad-r/de.json", squad("q", 15, "dog", sentence_breaks=breaks))
    kind, splits = read("lareqa", tmp_path)
    assert kind == "retrieval"
    assert splits["test", "en"] == [Example("q", "en", ("Who sat?",), ("de-1-2", "en-1-1"))]
    assert splits["candidates", "en"] is splits["candidates", "de"]
    texts = {one.id: (one.lang, *one.texts) for one in splits["candidates", "en"]}
    assert texts == {
        "en-1-1": ("en", "The cat sat."),
        "en-1-2": ("en", "A dog ran."),
        "de-1-1": ("de", "The cat sat."),
        "de-1-2": ("de", "A dog ran."),
    }
    write_json(tmp_path, "xquad-r/en.json", squad("q"))
    with pytest.raises(UserError, match=r"en.json: paragraph 1 lacks qas or sentence_breaks"):
        read("lareqa", tmp_path)


def mention(start: int, text: str) -> dict[str, Any]:
    spans = [{"start": 0, "end": 11}, {"start": 12, "end": 29}]
    news = {"language": "en", "text": "First line.\nSmith went\n home.", "sentence_spans": spans}
    span = {"start": start, "end": start + len(text), "text": text}
    return {
        "context": news,
        "mentions": [{"example_id": "m", "entity_id": "Q7", "mention_span": span}],
    }


def test_mewslix_marks_the_mention_in_its_sentence(tmp_path: Path) -> None:
    entity = {
        "entity_id": "Q7",
        "description": "Smith ni mtu.\nWa pili.",
        "description_language": "sw",
    }
    spans = [{"start": 0, "end": 13}, {"start": 14, "end": 22}]
    write_json(tmp_path, "wikinews_mentions-test.jsonl", mention(12, "Smith"))
    write_json(tmp_path, "candidate_set_entities.jsonl", {**entity, "sentence_spans": spans})
    query = Example("m", "en", ("Smith: { Smith } went home.",), ("Q7",))
    found = Example("Q7", "sw", ("Smith ni mtu. Wa pili.",), ("Q7",))
    expected = {("test", "en"): [query], ("candidates", "en"): [found]}
    assert read("mewslix", tmp_path) == ("retrieval", expected)
    write_json(tmp_path, "wikinews_mentions-test.jsonl", mention(13, "Smith"))
    with pytest.raises(UserError, match=r"line 1: mention m is not where it says"):
        read("mewslix", tmp_path)
