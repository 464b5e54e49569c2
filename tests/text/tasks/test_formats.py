"""Published sets in their publishers' layouts: small files of our own become the expected examples."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmalign.core.errors import UserError
from mmalign.text.tasks.example import Answer, Example
from mmalign.text.tasks.formats import READERS, read
from mmalign.text.tasks.task import Splits

Case = tuple[str, dict[str, tuple[Any, ...]], Splits]
"""Format, files (lines; objects become JSON) and what is read from them."""


def write(folder: Path, name: str, *rows: Any) -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def one(name: str, lang: str, texts: tuple[str, ...], target: Any, split: str = "test") -> Splits:
    return {(split, lang): [Example(name, lang, texts, target)]}


NLI = {"gold_label": "entailment", "sentence1": "a", "sentence2": "b", "pairID": "31e"}
UNDECIDED = {**NLI, "gold_label": "-"}
SICK = "pair_ID\tsentence_A\tsentence_B\trelatedness_score"
COPA = {"premise": "P.", "choice1": "one", "choice2": "two"}
IQA = {"context": "C.", "question": "Q?", "answerA": "a", "answerB": "b", "answerC": "c"}
IQA_TEXTS = ("C. Q?", "a", "b", "c")
GLUE_PAIR = "index\tsentence1\tsentence2\tlabel"

CLASSIFICATION: list[Case] = [
    (
        "sib200",
        {
            "data/annotated/swh_Latn/dev.tsv": (
                "index_id\tcategory\ttext",
                '12\ttravel\t"""Twende"", alisema"',
            ),
            "zho_Hant/test.tsv": ("index_id\tcategory\ttext", "3\tsports\t跑"),
            "data/annotated/swh_Latn/labels.txt": ("travel",),
        },
        one("12", "sw", ('"Twende", alisema',), "travel", "dev")
        | one("3", "zh-Hant", ("跑",), "sports"),
    ),
    (
        "masakhanews",
        {"data/swa/test.tsv": ("category\theadline\ttext", 'health\tHabari\t"Mstari', 'wa pili"')},
        one("sw-test-1", "sw", ("Habari Mstari\nwa pili",), "health"),
    ),
    (  # the release ends sentences with a space; GLUE's test files have no labels
        "sst2",
        {
            "SST-2/train.tsv": ("sentence\tlabel", "a joy \t1"),
            "SST-2/test.tsv": ("index\tsentence",),
        },
        one("train-1", "en", ("a joy",), "positive", "train"),
    ),
    (
        "cola",
        {
            "CoLA/dev.tsv": ("gj04\t0\t*\tRains it it.",),
            "cola_public/raw/out_of_domain_dev.tsv": ('clc95\t1\t\tHe said "no.',),
        },
        one("dev-1", "en", ("Rains it it.",), "0", "dev")
        | one("test-1", "en", ('He said "no.',), "1"),
    ),
    (
        "imdb",
        {
            "aclImdb/test/pos/0_10.txt": ("Good.<br />Really",),
            "aclImdb/test/neg/0_2.txt": ("Bad.",),
            "aclImdb/train/unsup/0_0.txt": ("no label",),
        },
        {
            ("test", "en"): [
                Example("test-neg-0_2", "en", ("Bad.\n",), "negative"),
                Example("test-pos-0_10", "en", ("Good.\nReally\n",), "positive"),
            ]
        },
    ),
    (
        "yelp_polarity",
        {"test.csv": ('"2","say ""hi""\\nthere"',)},
        one("test-1", "en", ('say "hi"\nthere',), "positive"),
    ),
    (
        "amazon_polarity",
        {"test.csv": ('"1","title","no\\nway"',)},
        one("test-1", "en", ("no\nway",), "negative"),
    ),
    (
        "flipkart",
        {
            "Dataset-SA.csv": (
                "product_name,product_price,Summary,Sentiment",
                "fan,9,,negative",
                'fan,"3,999",so so,neutral',
            )
        },
        one("test-2", "en", ("so so",), "negative"),
    ),
    (  # the folder `all` repeats the others
        "xlmt",
        {
            "data/sentiment/french/val_text.txt": ("super\t@user",),
            "data/sentiment/french/val_labels.txt": ("2",),
            "data/sentiment/all/val_text.txt": ("super",),
        },
        one("fr-dev-1", "fr", ("super\t@user",), "positive", "dev"),
    ),
    (
        "xnli",
        {
            "XNLI-1.0/xnli.test.tsv": (
                "language\tgold_label\tsentence1\tsentence2\tpairID",
                "de\tneutral\tA\tB\t9",
                "sw\tcontradiction\tC\tD\t9",
            )
        },
        one("test-9", "de", ("A", "B"), "neutral")
        | one("test-9", "sw", ("C", "D"), "contradiction"),
    ),
    (  # XTREME takes the labels out of its test files
        "xtreme_pairs",
        {
            "train-en.tsv": ('"say ""a"""\tb\tcontradictory',),
            "test-de.tsv": ("a\tb",),
            "test-sw.tsv": ("a\tb\t1",),
        },
        one("train-1", "en", ('say "a"', "b"), "contradiction", "train")
        | one("test-1", "sw", ("a", "b"), "1"),
    ),
    (
        "pawsx",
        {
            "x-final/de/test_2k.tsv": ("id\tsentence1\tsentence2\tlabel", '4\tein "Haus\tNS\t0'),
            "x-final/de/translated_train.tsv": ("id\tsentence1\tsentence2\tlabel", "4\ta\tb\t1"),
        },
        one("test-4", "de", ('ein "Haus', "NS"), "0")
        | one("train-4", "de", ("a", "b"), "1", "train"),
    ),
    (
        "mnli",
        {
            "multinli_1.0/multinli_1.0_dev_mismatched.jsonl": (UNDECIDED, NLI),
            "MNLI/dev_matched.tsv": (
                "index\tpairID\tsentence1\tsentence2\tlabel1\tgold_label",
                "0\t31e\ta\tb\tneutral\tentailment",
            ),
        },
        one("test-31e", "en", ("a", "b"), "entailment")
        | one("dev-31e", "en", ("a", "b"), "entailment", "dev"),
    ),
    (
        "snli",
        {"snli_1.0/snli_1.0_test.jsonl": (NLI,)},
        one("test-31e", "en", ("a", "b"), "entailment"),
    ),
    (
        "sick",
        {
            "SICK.txt": (
                f"{SICK}\tentailment_label\tSemEval_set",
                "1\ta\tb\t3.3\tNEUTRAL\tTRIAL",
                "2\tc\td\t4.9\tENTAILMENT\tTEST",
            )
        },
        one("dev-1", "en", ("a", "b"), "neutral", "dev")
        | one("test-2", "en", ("c", "d"), "entailment"),
    ),
    (  # without a split it is all test
        "sick",
        {"SICK/SICK.txt": (f"{SICK}\tentailment_judgment", "1\ta\tb\t3.3\tCONTRADICTION")},
        one("test-1", "en", ("a", "b"), "contradiction"),
    ),
    (
        "rte",
        {"RTE/dev.tsv": (GLUE_PAIR, "0\ta\tb\tnot_entailment"), "RTE/test.tsv": ("index",)},
        one("dev-1", "en", ("a", "b"), "not_entailment", "dev"),
    ),
    (
        "qnli",
        {"QNLI/dev.tsv": ("index\tquestion\tsentence\tlabel", "0\tq\ts\tentailment")},
        one("dev-1", "en", ("q", "s"), "entailment", "dev"),
    ),
    (
        "mrpc",
        {"MRPC/dev.tsv": ("Quality\t#1 ID\t#2 ID\t#1 String\t#2 String", '1\t5\t6\t"a\tb')},
        one("dev-1", "en", ('"a', "b"), "1", "dev"),
    ),
    (  # the release broke some rows
        "qqp",
        {"train.tsv": ("id\tquestion1\tquestion2\tis_duplicate", "1\ta", "?\tb?\t0", "2\tc\td\t1")},
        one("train-3", "en", ("c", "d"), "1", "train"),
    ),
    (
        "hans",
        {
            "heuristics_evaluation_set.txt": (
                "gold_label\tsentence1\tsentence2\tpairID",
                "non-entailment\ta\tb\tex0",
            )
        },
        one("test-ex0", "en", ("a", "b"), "not_entailment"),
    ),
    (
        "scitail",
        {"tsv_format/scitail_1.0_test.tsv": ("p\th\tneutral",)},
        one("test-1", "en", ("p", "h"), "not_entailment"),
    ),
    (  # debatable pairs are left out
        "pit2015",
        {
            "data/dev.data": ("1\tt\ta\tb\t(2, 3)\tA\tB", "1\tt\ta\tb\t(3, 2)\tA\tB"),
            "data/test.data": ("1\tt\ta\tb\t3\tA\tB", "1\tt\ta\tb\t2\tA\tB"),
        },
        one("dev-2", "en", ("a", "b"), "1", "dev") | one("test-2", "en", ("a", "b"), "0"),
    ),
    (
        "adv_sst2",
        {"dev.json": ({"sst2": [{"idx": 0, "sentence": "dul", "label": 0}]},)},
        one("test-0", "en", ("dul",), "negative"),
    ),
    (
        "adv_mnli_mm",
        {"dev.json": ({"mnli-mm": [{"idx": 4, "premise": "a", "hypothesis": "b", "label": 2}]},)},
        one("test-4", "en", ("a", "b"), "contradiction"),
    ),
]

SIMILARITY: list[Case] = [
    (
        "stsb",
        {"STS-B/dev.tsv": ("index\tsentence1\tsentence2\tscore", '0\ta "b\tc\t2.500')},
        one("dev-1", "en", ('a "b', "c"), 2.5, "dev"),
    ),
    (
        "stsb_multi_mt",
        {"data/stsb-de-test.csv": ('"Ein Hund, der bellt.",Ein Hund.,3.2',)},
        one("test-1", "de", ("Ein Hund, der bellt.", "Ein Hund."), 3.2),
    ),
    (
        "sick_relatedness",
        {"SICK_test_annotated.txt": (f"{SICK}\tentailment_judgment", "6\ta\tb\t3.3\tNEUTRAL")},
        one("test-6", "en", ("a", "b"), 3.3),
    ),
]

MULTIPLE_CHOICE: list[Case] = [
    (  # the original, not its translation into English
        "xcopa",
        {
            "data/sw/val.sw.jsonl": ({**COPA, "question": "cause", "label": 1, "idx": 3},),
            "data-gmt/sw/val.sw.jsonl": ({**COPA, "premise": "translated"},),
        },
        one("dev-3", "sw", ("P. What was the cause?", "one", "two"), 1, "dev"),
    ),
    (  # its test has no labels
        "copa",
        {
            "COPA/train.jsonl": ({**COPA, "question": "effect", "label": 0, "idx": 4},),
            "COPA/test.jsonl": ({"premise": "P."},),
        },
        one("train-4", "en", ("P. What was the effect?", "one", "two"), 0, "train"),
    ),
    (
        "social_iqa",
        {
            "socialIQa_v1.4/socialIQa_v1.4_trn.jsonl": ({**IQA, "correct": "C"},),
            "dev.jsonl": (IQA,),
            "dev-labels.lst": ("2",),
        },
        one("train-1", "en", IQA_TEXTS, 2, "train") | one("dev-1", "en", IQA_TEXTS, 1, "dev"),
    ),
]


def conllu(number: str, word: str, tag: str) -> str:
    return "\t".join([number, word, "_", tag, *"______"])


TAGGING: list[Case] = [
    (  # ranges and empty nodes are no words; treebanks of a language are joined
        "conllu",
        {
            "UD_French-A/fr_a-ud-test.conllu": (
                "# text = du",
                conllu("1-2", "du", "_"),
                conllu("1", "de", "ADP"),
                conllu("2", "le", "DET"),
                conllu("2.1", "va", "VERB"),
                "",
            ),
            "UD_French-B/fr_b-ud-test.conllu": (conllu("1", "oui", "INTJ"),),
        },
        {
            ("test", "fr"): [
                Example("a-test-1", "fr", ("de", "le"), ("ADP", "DET")),
                Example("b-test-1", "fr", ("oui",), ("INTJ",)),
            ]
        },
    ),
    (
        "wikiann",
        {"sw/dev": ("sw:Dar\tB-LOC", "sw:es:Salaam\tI-LOC", "", "sw:leo\tO", "")},
        {
            ("dev", "sw"): [
                Example("sw-dev-1", "sw", ("Dar", "es:Salaam"), ("B-LOC", "I-LOC")),
                Example("sw-dev-2", "sw", ("leo",), ("O",)),
            ]
        },
    ),
    (  # XTREME takes the tags out of its test files
        "xtreme_tags",
        {"dev-de.tsv": ("#\tPUNCT", "Haus\tNOUN"), "test-de.tsv": ("Haus", "", "geht")},
        one("de-dev-1", "de", ("#", "Haus"), ("PUNCT", "NOUN"), "dev"),
    ),
]


def squad(
    question: str = "q1", start: int = 4, text: str = "cat", **more: Any
) -> dict[str, list[dict[str, Any]]]:
    answers = [{"text": text, "answer_start": start}]
    asked = {"id": question, "question": "Who sat?", "answers": answers}
    paragraph = {"context": "The cat sat. A dog ran.", "qas": [asked], **more}
    return {"data": [{"paragraphs": [paragraph]}]}


def answered(name: str, lang: str, split: str) -> Splits:
    return one(name, lang, ("Who sat?", "The cat sat. A dog ran."), (Answer("cat", 4),), split)


SPAN_QA: list[Case] = [
    ("squad", {"dev-v1.1.json": (squad(),)}, answered("q1", "en", "dev")),
    ("xquad", {"xquad.hi.json": (squad(),)}, answered("q1", "hi", "test")),
    (  # question and context must be in one language
        "mlqa",
        {
            "MLQA_V1/test/test-context-vi-question-vi.json": (squad(),),
            "MLQA_V1/test/test-context-vi-question-de.json": (squad(),),
        },
        answered("q1", "vi", "test"),
    ),
    ("tydiqa", {"tydiqa.goldp.ko.dev.json": (squad(),)}, answered("q1", "ko", "dev")),
    (  # the publisher's files name the language in the ids
        "tydiqa",
        {
            "tydiqa-goldp-v1.1-train.json": (
                {"data": squad("swahili-1-2")["data"] + squad("english-3-4")["data"]},
            ),
            "tydiqa-goldp-v1.1-dev/tydiqa-goldp-dev-korean.json": (squad("korean-5-6"),),
        },
        answered("swahili-1-2", "sw", "train")
        | answered("english-3-4", "en", "train")
        | answered("korean-5-6", "ko", "dev"),
    ),
]

BREAKS = [[0, 12], [13, 23]]
POOL = [
    Example(f"{lang}-1-{i}", lang, (text,), (f"{lang}-1-{i}",))
    for lang in ("de", "en")
    for i, text in enumerate(("The cat sat.", "A dog ran."), start=1)
]
NEWS = {
    "language": "en",
    "text": "First line.\nSmith went\n home.",
    "sentence_spans": [{"start": 0, "end": 11}, {"start": 12, "end": 29}],
}


def mention(start: int) -> dict[str, Any]:
    span = {"start": start, "end": start + 5, "text": "Smith"}
    return {
        "context": NEWS,
        "mentions": [{"example_id": "m", "entity_id": "Q7", "mention_span": span}],
    }


ENTITY = {
    "entity_id": "Q7",
    "description": "Smith ni mtu.\nWa pili.",
    "description_language": "sw",
    "sentence_spans": [{"start": 0, "end": 13}, {"start": 14, "end": 22}],
}
TATOEBA = one("sw-1", "sw", ("Habari.",), ("sw-en-1",)) | {
    ("candidates", "sw"): [Example("sw-en-1", "en", ("News.",), ("sw-en-1",))]
}

RETRIEVAL: list[Case] = [
    ("tatoeba", {"tatoeba.swh-eng.swh": ("Habari.",), "tatoeba.swh-eng.eng": ("News.",)}, TATOEBA),
    ("tatoeba", {"sw-en.tsv": ("text\tenglish", "Habari.\tNews.")}, TATOEBA),
    (  # a sentence of any language answers
        "lareqa",
        {
            "xquad-r/en.json": (squad("q", sentence_breaks=BREAKS),),
            "xquad-r/de.json": (squad("q", 15, "dog", sentence_breaks=BREAKS),),
        },
        one("q", "en", ("Who sat?",), ("de-1-2", "en-1-1"))
        | one("q", "de", ("Who sat?",), ("de-1-2", "en-1-1"))
        | {("candidates", "de"): POOL, ("candidates", "en"): POOL},
    ),
    (  # the mention, and its sentence with the mention in braces
        "mewslix",
        {
            "wikinews_mentions-test.jsonl": (mention(12),),
            "candidate_set_entities.jsonl": (ENTITY,),
        },
        one("m", "en", ("Smith: { Smith } went home.",), ("Q7",))
        | {("candidates", "en"): [Example("Q7", "sw", ("Smith ni mtu. Wa pili.",), ("Q7",))]},
    ),
]

CASES = {
    "classification": CLASSIFICATION,
    "similarity": SIMILARITY,
    "multiple_choice": MULTIPLE_CHOICE,
    "tagging": TAGGING,
    "span_qa": SPAN_QA,
    "retrieval": RETRIEVAL,
}


@pytest.mark.parametrize(
    ("kind", "name", "files", "expected"),
    [(kind, *case) for kind, cases in CASES.items() for case in cases],
    ids=[case[0] for cases in CASES.values() for case in cases],
)
def test_files_become_examples(
    tmp_path: Path, kind: str, name: str, files: dict[str, tuple[Any, ...]], expected: Splits
) -> None:
    for file, rows in files.items():
        write(tmp_path, file, *rows)
    found = read(name, tmp_path)
    assert found == (kind, expected)
    if name == "lareqa":  # one pool, which is embedded once
        assert found[1]["candidates", "en"] is found[1]["candidates", "de"]


def test_every_format_is_read_here() -> None:
    elsewhere = {"tsv", "meci", "adv_mnli", "adv_qnli", "adv_qqp", "adv_rte"}
    assert {case[0] for cases in CASES.values() for case in cases} | elsewhere == set(READERS)


BAD_ANSWER = {"data": squad("good")["data"] + squad("bad", start=5)["data"]}
EMPTY_ANSWER = {"data": squad("good")["data"] + squad("bad", start=0, text="")["data"]}
XNLI_HEADER = "language\tgold_label\tsentence1\tsentence2\tpairID"


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        (
            "xlmt",
            {"french/val_text.txt": ("bof", "oui"), "french/val_labels.txt": ("1",)},
            r"val_labels.txt: 1 lines, but 2 in val_text.txt",
        ),
        (
            "xlmt",
            {"french/val_text.txt": ("bof", "oui"), "french/val_labels.txt": ("1", "7")},
            r"val_text.txt, line 2: `label` is `7`; it must be one of 0, 1, 2",
        ),
        (
            "snli",
            {"snli_1.0_test.jsonl": ({**NLI, "gold_label": "maybe"},)},
            r"line 1: `gold_label` is `maybe`; it must be one of",
        ),
        ("xnli", {"xnli.test.tsv": (XNLI_HEADER, "sw\t\tC\tD\t9")}, "line 2: `gold_label` must be"),
        (
            "sst2",
            {"dev.tsv": ("sentence\tlabel", " \t1")},
            "line 2: `sentence` must be text and not",
        ),
        ("adv_rte", {"dev.json": ({"rte": "broken"},)}, r"dev.json: has no list of examples `rte`"),
        (
            "copa",
            {"train.jsonl": ({**COPA, "question": "why", "label": 0, "idx": 4},)},
            r"train.jsonl, line 1: `question` is `why`",
        ),
        (
            "social_iqa",
            {"dev.jsonl": (IQA, IQA), "dev-labels.lst": ("3",)},
            r"dev-labels.lst: 1 lines, but 2 in dev.jsonl",
        ),
        ("conllu", {"fr_c-ud-test.conllu": ("", "1\tmot")}, r"line 2: 2 columns; there must be 10"),
        ("wikiann", {"sw/test": ("Dar\tB-LOC",)}, r"line 1: `Dar` has no language before it"),
        (
            "xtreme_tags",
            {"dev-de.tsv": ("Haus\tNOUN", "Hof")},
            r"line 2: 1 columns; there must be 2",
        ),
        ("xquad", {"xquad.en.json": (BAD_ANSWER,)}, r"1 of 2 questions .*the first is bad"),
        ("xquad", {"xquad.en.json": (EMPTY_ANSWER,)}, r"1 of 2 questions .*the first is bad"),
        ("xquad", {"xquad.en.json": ({},)}, "get the file again"),
        ("xquad", {"xquad.en.json": ({"data": [{}]},)}, "get the file again"),
        (
            "xquad",
            {"xquad.en.json": ({"data": [{"paragraphs": [{"qas": [{}]}]}]},)},
            "get the file again",
        ),
        (
            "tatoeba",
            {"tatoeba.swh-eng.swh": ("a", "b"), "tatoeba.swh-eng.eng": ("c",)},
            r"swh-eng.eng: 1 lines, but 2 in tatoeba.swh-eng.swh",
        ),
        (
            "tatoeba",
            {
                "sw-en.tsv": ("text\tenglish", "Habari.\tNews."),
                "tatoeba.swh-eng.swh": ("Habari.",),
                "tatoeba.swh-eng.eng": ("News.",),
            },
            "a second file for test in `sw`; keep one of them",
        ),
        ("lareqa", {"en.json": (squad("q"),)}, r"paragraph 1 lacks qas or sentence_breaks"),
        (
            "mewslix",
            {
                "wikinews_mentions-test.jsonl": (mention(13),),
                "candidate_set_entities.jsonl": (ENTITY,),
            },
            r"line 1: mention m is not where it should be",
        ),
    ],
)
def test_a_broken_file_is_named(
    tmp_path: Path, name: str, files: dict[str, tuple[Any, ...]], message: str
) -> None:
    for file, rows in files.items():
        write(tmp_path, file, *rows)
    with pytest.raises(UserError, match=message):
        read(name, tmp_path)


def test_a_folder_without_the_layout_says_what_was_looked_for(tmp_path: Path) -> None:
    for name in READERS:
        with pytest.raises(UserError, match="looked for "):
            read(name, tmp_path)
        with pytest.raises(UserError, match="no such task folder"):
            read(name, tmp_path / "missing")
