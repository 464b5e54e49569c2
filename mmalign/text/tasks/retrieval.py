"""Published sets that search: translations, answers, entities.

    Tatoeba    a sentence         -> its translation among the English sentences of its file
    LAReQA     a question         -> the sentences that answer it, in all languages
    Mewsli-X   a mention in news  -> the description of what is meant, in whatever language

Queries are in the splits `dev` and `test`; their target is the ids of the right candidates.
Candidates are in the split `candidates`, under the language of the queries that search them; a
pool that all languages share stands under each as the same list. A candidate's own language is its
`lang`, its target is its own id.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmalign.core.errors import UserError
from mmalign.text.tasks.codes import bcp47
from mmalign.text.tasks.example import Example
from mmalign.text.tasks.layout import SPLIT, matching
from mmalign.text.tasks.question_answering import paragraphs, right_answers
from mmalign.text.tasks.tables import Row, jsonl, lines, tsv
from mmalign.text.tasks.task import Splits

CANDIDATES = "candidates"
Span = tuple[int, int]


def read_tatoeba(folder: Path) -> Splits:
    """Tatoeba (Artetxe and Schwenk, TACL 2019): find the English translation, one pool a language.

    Files of LASER, two a language, or our tables `<language>-en.tsv` with the columns text and english.
    """
    pattern = r"(v1/)?tatoeba\.(?P<code>[a-z]{3})-eng\.(?P=code)|(?P<lang>[a-z]{2,3}(-[A-Za-z]+)?)-en\.tsv"
    wanted = "tatoeba.<ISO 639-3>-eng.{<ISO 639-3>,eng} or <language>-en.tsv"
    splits: Splits = {}
    for path, match in matching(folder, pattern, wanted):
        lang = bcp47(match["lang"] or match["code"])
        if ("test", lang) in splits:
            raise UserError(f"{path}: a second file for `{lang}`; keep one of them")
        pairs = _table_pairs(path) if match["lang"] else _laser_pairs(path)
        for number, (text, english) in enumerate(pairs, start=1):
            # Files of different languages are not aligned: the same number means another sentence.
            query, found = f"{lang}-{number}", f"{lang}-en-{number}"
            splits.setdefault(("test", lang), []).append(Example(query, lang, (text,), (found,)))
            splits.setdefault((CANDIDATES, lang), []).append(_candidate(found, "en", english))
    return splits


def read_lareqa(folder: Path) -> Splits:
    """LAReQA's XQuAD-R (Roy et al., EMNLP 2020): sentences of all languages in one pool.

    A sentence is right where the question's answer starts in it, in any language. A question whose
    answer starts between two sentences in a language has no right sentence there.
    """
    splits: Splits = {}
    pool: list[Example] = []
    right: dict[str, list[str]] = {}
    pattern = r"(xquad-r/)?(?P<lang>[a-z]{2})\.json"
    for path, match in matching(folder, pattern, "xquad-r/<language>.json"):
        lang = bcp47(match["lang"])
        for number, paragraph in enumerate(paragraphs(path), start=1):
            try:
                sentences = _sentences(paragraph, f"{lang}-{number}")
                pool += [_candidate(name, lang, text) for name, _, text in sentences]
                for question in paragraph["qas"]:
                    right.setdefault(question["id"], []).extend(_holding(question, sentences))
                    query = Example(question["id"], lang, (question["question"],), ())
                    splits.setdefault(("test", lang), []).append(query)
            except (KeyError, TypeError, ValueError):
                raise UserError(
                    f"{path}: paragraph {number} lacks qas or sentence_breaks; take the files of "
                    "LAReQA, not those of XQuAD"
                ) from None
    answered = {key: _with_targets(queries, right) for key, queries in splits.items()}
    return answered | {(CANDIDATES, lang): pool for _, lang in splits}


def read_mewslix(folder: Path) -> Splits:
    """Mewsli-X (Ruder et al., EMNLP 2021): news mentions, one pool of about a million descriptions.

    The publisher's script puts the news texts into `wikinews_mentions-*.jsonl`. Query and candidate
    are written as in XTREME: the mention, a colon and its sentence with the mention in braces; the
    sentences of the description.
    """
    splits: Splits = {}
    pattern = r"(.+/)?wikinews_mentions-(?P<split>dev|test)\.jsonl"
    for path, match in matching(folder, pattern, "wikinews_mentions-{dev,test}.jsonl"):
        for row in jsonl(path):
            for query in _mentions(row):
                splits.setdefault((SPLIT[match["split"]], query.lang), []).append(query)
    wanted = "candidate_set_entities.jsonl"
    (path, _), *_ = matching(folder, r"(.+/)?candidate_set_entities\.jsonl", wanted)
    pool = [_entity(row) for row in jsonl(path)]
    return splits | {(CANDIDATES, lang): pool for _, lang in splits}


def _candidate(name: str, lang: str, text: str) -> Example:
    return Example(name, lang, (text,), (name,))


def _table_pairs(path: Path) -> list[tuple[str, str]]:
    return [(row.text("text"), row.text("english")) for row in tsv(path)]


def _laser_pairs(path: Path) -> list[tuple[str, str]]:
    texts, english = lines(path), lines(path.with_suffix(".eng"))
    if len(texts) != len(english):
        raise UserError(
            f"{path}: {len(texts)} lines, but {len(english)} in the English file; get both again"
        )
    return list(zip(texts, english, strict=True))


def _sentences(paragraph: dict[str, Any], prefix: str) -> list[tuple[str, Span, str]]:
    """(id, span in the context, text) of each sentence of a paragraph of XQuAD-R."""
    context = paragraph["context"]
    return [
        (f"{prefix}-{place}", (start, end), context[start:end])
        for place, (start, end) in enumerate(paragraph["sentence_breaks"], start=1)
    ]


def _holding(question: dict[str, Any], sentences: list[tuple[str, Span, str]]) -> Iterator[str]:
    """Ids of the sentences in which an answer starts, and of those with the same words beside them."""
    starts = [answer.start for answer in right_answers(question)]
    texts = {text for _, (a, b), text in sentences if any(a <= start < b for start in starts)}
    return (name for name, _, text in sentences if text in texts)


def _with_targets(queries: list[Example], right: dict[str, list[str]]) -> list[Example]:
    return [Example(one.id, one.lang, one.texts, tuple(right[one.id])) for one in queries]


def _mentions(row: Row) -> Iterator[Example]:
    """The queries of one news article."""
    try:
        context = row.cells["context"]
        lang, text = bcp47(context["language"]), context["text"]
        sentences = [(one["start"], one["end"]) for one in context["sentence_spans"]]
        for mention in row.cells["mentions"]:
            span = (mention["mention_span"]["start"], mention["mention_span"]["end"])
            if text[slice(*span)] != mention["mention_span"]["text"]:
                raise row.error(
                    f"mention {mention['example_id']} is not where it says; run the publisher's script "
                    "that puts the texts in"
                )
            query = _marked(text, span, sentences)
            yield Example(mention["example_id"], lang, (query,), (mention["entity_id"],))
    except (KeyError, TypeError):
        raise row.error("lacks a key of Mewsli-X's mentions; get the set again") from None


def _marked(text: str, mention: Span, sentences: list[Span]) -> str:
    """The mention, a colon, and its sentence (or sentences) with the mention in braces."""
    start, end = mention
    around = [(a, b) for a, b in sentences if a < end and start < b] or [mention]
    left, right = text[around[0][0] : start], text[end : around[-1][1]]
    return " ".join(f"{text[start:end]}: {left} {{ {text[start:end]} }} {right}".split())


def _entity(row: Row) -> Example:
    description = row.cell("description")
    try:
        spans = [(one["start"], one["end"]) for one in row.cells["sentence_spans"]]
    except (KeyError, TypeError):
        raise row.error("lacks `sentence_spans`; get the set again") from None
    text = " ".join(" ".join(description[start:end] for start, end in spans).split())
    return _candidate(row.text("entity_id"), bcp47(row.text("description_language")), text)
