"""Phrases, clauses and statements are where the rules say, in any script."""

from causality_cases import alone, crowded, document, overlapping, storm

from mmalign.text.causality.outline import Outline, Span, outline
from mmalign.text.tasks.task import Example


def words(found: Outline, spans: list[Span]) -> list[str]:
    return [found.text[start:end] for start, end in spans]


def phrases(example: Example) -> list[str]:
    found = outline(example)
    return words(found, [one.span for one in found.phrases])


def test_marks_and_frequent_short_words_end_a_phrase() -> None:
    assert phrases(storm()) == [
        "storm caused",  # `the` occurs four times
        "flood",
        "and",  # once only: no glue
        "flood grew",
        "A dog sleeps",
        "storm ended",
    ]


def test_a_statement_is_the_clause_of_its_trigger() -> None:
    found = outline(storm())
    assert words(found, found.triggers) == ["storm", "flood", "sleeps", "ended"]
    first = "the storm caused the flood"
    assert words(found, found.clauses) == [first, first, "A dog sleeps", "the storm ended"]
    assert words(found, found.sentences) == list(storm().texts)
    assert found.phrases_of == [[0, 1], [0, 1], [4], [5]]
    assert found.sentence_of == [0, 0, 1, 2]
    assert found.pairs == [(0, 1), (0, 2), (1, 3), (2, 3)]
    assert found.causal == [True, False, False, False]


def test_a_short_trigger_is_no_glue() -> None:
    example = document("0", ("war and war and peace",), ("war",), ())
    # The other `war` is no trigger: it stays glue.
    assert phrases(example) == ["war", "peace"]
    assert outline(example).phrases[0].words == frozenset()


def test_words_of_other_scripts() -> None:
    urdu = document(
        "0", ("سیلاب کی وجہ سے سڑک بند ہوئی ۔", "سیلاب کی شدت ، بارش"), ("سیلاب",), (), "ur"
    )
    assert phrases(urdu) == ["سیلاب", "وجہ سے سڑک بند ہوئی", "سیلاب", "شدت", "بارش"]
    hindi = document("0", ("बाढ़ से सड़कें टूटीं ।",), ("बाढ़",), (), "hi")
    assert phrases(hindi) == ["बाढ़ से सड़कें टूटीं"]
    japanese = document("0", ("洪水で道路が壊れた。雨だ",), ("洪水",), (), "ja")
    assert phrases(japanese) == ["洪水で道路が壊れた", "雨だ"]


def test_hyphens_inside_words_and_between_them() -> None:
    assert phrases(document("0", ("ten-year-old don't go - now",), ("go",), ())) == [
        "ten-year-old don't go",
        "now",
    ]


def test_a_trigger_across_marks_has_all_its_clauses() -> None:
    example = document("0", ("they broke , then off it ended",), ("broke , then off",), ())
    found = outline(example)
    assert words(found, found.clauses) == ["they broke , then off it ended"]
    mark = outline(document("0", ("why ? yes",), ("?",), ()))
    assert words(mark, mark.clauses) == ["?"]
    assert mark.phrases_of == [[]]


def test_documents_with_one_event_none_overlapping_and_sixty() -> None:
    assert outline(alone()).pairs == []
    assert outline(document("0", (".",), (), ())).phrases == []
    both = outline(overlapping())
    assert words(both, both.triggers) == ["civil war", "war", "ended"]
    assert len(outline(crowded()).pairs) == 1770
