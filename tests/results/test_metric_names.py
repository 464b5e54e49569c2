"""Metric names come apart where they were put together."""

import pytest

from mmalign.results.metric_names import (
    MetricName,
    known_languages,
    languages,
    mark_subjects,
    split_pair,
    subjects,
)

NAMES = [
    "retrieval/scenes/pt-BR/text_to_image/recall@1",
    "retrieval/scenes/mean/text_to_image/recall@1",
    "retrieval/scenes/all/text_to_image/recall@1",
    "retrieval/scenes/worst5/text_to_image/recall@1",
    "retrieval/scenes/family:Bantu/text_to_image/recall@1",
    "retrieval/scenes@first-caption/sw/text_to_image/recall@1",
    "zero_shot/things/worst5/accuracy@1",
    "zero_shot/things/de/accuracy@1",
    "alignment/scenes/pt-BR-sw/bitext@1",
    "text/topic_unseen/sw/clean/accuracy",
    "text/entailment/pt-BR/clean/accuracy",
    "text/entailment/mean/characters-2/accuracy_drop",
    "text/entailment/pt-BR-sw/generalised/accuracy",
    "text/entailment/sw-sw/generalised/accuracy",
    "text/entailment/mean/generalised/accuracy_same_language",
]


def test_subjects_and_languages() -> None:
    assert subjects(NAMES, "retrieval") == ["scenes", "scenes@first-caption"]
    assert subjects(NAMES, "text") == ["entailment", "topic_unseen"]
    assert languages(NAMES, "retrieval", "scenes") == ["pt-BR"]
    assert languages(NAMES, "retrieval", "scenes@first-caption") == ["sw"]
    assert languages(NAMES, "zero_shot", "things") == ["de"]
    assert languages(NAMES, "text", "topic") == []
    assert languages(NAMES, "text", "topic_unseen") == ["sw"]
    # Pairs of the generalised setting are not languages.
    assert languages(NAMES, "text", "entailment") == ["pt-BR"]
    only_pairs = [name for name in NAMES if "generalised" in name]
    assert languages(only_pairs, "text", "entailment") == []
    assert known_languages(NAMES) == {"pt-BR", "sw", "de"}


def test_a_subject_is_marked() -> None:
    name = "text/topic/sw/clean/accuracy"
    assert mark_subjects(name, "text", {"topic"}, "@b") == "text/topic@b/sw/clean/accuracy"
    assert mark_subjects("text/topic", "text", {"topic"}, "@b") == "text/topic@b"  # of a protocol
    assert mark_subjects(name, "text", {"other"}, "@b") == name


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        ("en-de", ("en", "de")),
        ("pt-BR-en", ("pt-BR", "en")),
        ("en-pt-BR", ("en", "pt-BR")),
        ("pt-pt-BR", ("pt", "pt-BR")),
        ("pt-BR-pt", ("pt-BR", "pt")),
        ("zh-Hant-TW-pt-BR", ("zh-Hant-TW", "pt-BR")),
        ("es-419-fr", ("es-419", "fr")),
        ("xx-YY-zz", ("xx-YY", "zz")),
        ("xx-zz-YY", ("xx", "zz-YY")),
    ],
)
def test_a_pair_is_split_between_its_languages(pair: str, expected: tuple[str, str]) -> None:
    known = ["en", "de", "pt", "pt-BR", "zh-Hant-TW", "es-419", "fr"]
    assert split_pair(pair, known) == expected
    if pair in ("pt-BR-en", "en-pt-BR"):
        assert split_pair(pair, []) == expected


@pytest.mark.parametrize(
    "name, language, setting",
    [
        ("retrieval/xm3600/sw/text_to_image/recall@10", "sw", ("text_to_image",)),
        ("alignment/xtd/en-pt-BR/bitext@1", "en-pt-BR", ()),
        ("layers/xtd/12/mean/bitext@1", None, ("12", "mean")),
        ("lexical/gatitos/mean/3/held_out/precision@1", "mean", ("3", "held_out")),
        (
            "faiss/xm3600/IVF1024,PQ32/sw/text_to_image/recall@10",
            "sw",
            ("IVF1024,PQ32", "text_to_image"),
        ),
        ("text/xnli/de/clean/accuracy", "de", ("clean",)),
    ],
)
def test_a_name_is_parsed_and_written_again(
    name: str, language: str | None, setting: tuple[str, ...]
) -> None:
    parsed = MetricName.parse(name)
    assert (parsed.language, parsed.setting) == (language, setting)
    assert str(parsed) == name
    assert parsed.group == name.rpartition("/")[0]
