"""Published sets that search: translations, answers, entities.

Candidates are in the split `candidates`, under the language of the queries that search them; a pool that all
languages share is the same list under each. A candidate's target is its own id.
"""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from mmalign.core.errors import UserError
from mmalign.text.tasks.codes import bcp47
from mmalign.text.tasks.layout import matching
from mmalign.text.tasks.question_answering import correct_answers, paragraphs
from mmalign.text.tasks.tables import Row, lines, parallel, rows
from mmalign.text.tasks.task import CANDIDATES, Entry, Example, Splits


def translations(path: Path, parts: Mapping[str, str]) -> Iterator[Entry]:
    """Tatoeba: the queries and candidates of one file, one pool per language."""
    lang = parts["lang"]
    if path.suffix == ".tsv":
        pairs = [(row.text("text"), row.text("english")) for row in rows(path)]
    else:  # LASER has a second file with the English sentences, line by line
        english = path.with_suffix(".eng")
        pairs = list(parallel(english, lines(english), path, lines(path)))
    for number, (text, translation) in enumerate(pairs, start=1):
        # Files of different languages are not aligned: the same number means another sentence.
        found = f"{lang}-en-{number}"
        place = f"{path}, row {number}"
        yield ("test", lang), Example(f"{lang}-{number}", lang, (text,), (found,), place)
        yield (CANDIDATES, lang), _candidate(found, "en", translation, place)


def parallel_texts(folder: Path, files: str) -> Splits:
    """Texts in English and one other language, `en-<lang>.tsv`: a text searches all distinct English ones.

    Right is every English text that stands beside the query in some row, so dictionaries may repeat words.
    """
    splits: Splits = {}
    for path, parts in matching(folder, files):
        lang = parts["lang"]
        candidates: dict[str, Example] = {}
        answers: dict[str, dict[str, int]] = {}
        for row in rows(path):
            column = next((c for c in row.cells if c in ("translation", path.stem[3:])), None)
            if column is None or "en" not in row.cells:
                raise row.error(f"needs the columns `en` and `{path.stem[3:]}` or `translation`")
            english, text = row.text("en"), row.text(column)
            name = f"{lang}-en-{len(candidates) + 1}"
            candidates.setdefault(english, _candidate(name, "en", english, row.place))
            answers.setdefault(text, {}).setdefault(candidates[english].id, row.number)
        splits[CANDIDATES, lang] = list(candidates.values())
        splits["test", lang] = [
            # Named by its first row: equal where files of several languages have the same rows.
            Example(str(next(iter(right.values()))), lang, (text,), tuple(right), str(path))
            for text, right in answers.items()
        ]
    return splits


def read_lareqa(folder: Path, files: str) -> Splits:
    """LAReQA's XQuAD-R (Roy et al., EMNLP 2020): sentences of all languages in one pool.

    A sentence is correct where the question's answer starts in it, in any language.
    """
    splits: Splits = {}
    pool: list[Example] = []
    correct: dict[str, list[str]] = {}
    for path, parts in matching(folder, files):
        lang = parts["lang"]
        for number, paragraph in enumerate(paragraphs(path), start=1):
            try:
                sentences = [
                    (f"{lang}-{number}-{i}", range(start, end), paragraph["context"][start:end])
                    for i, (start, end) in enumerate(paragraph["sentence_breaks"], start=1)
                ]
                pool += [_candidate(name, lang, text, str(path)) for name, _, text in sentences]
                for asked in paragraph["qas"]:
                    starts = {answer.start for answer in correct_answers(asked)}
                    # None, where the answer starts between two sentences.
                    holding = {text for _, span, text in sentences if starts.intersection(span)}
                    # Sentences of the same paragraph with the same words answer too.
                    names = [name for name, _, text in sentences if text in holding]
                    correct.setdefault(asked["id"], []).extend(names)
                    query = Example(asked["id"], lang, (asked["question"],), (), str(path))
                    splits.setdefault(("test", lang), []).append(query)
            except (KeyError, TypeError, ValueError):
                raise UserError(
                    f"{path}: paragraph {number} lacks qas or sentence_breaks; use the files of "
                    "LAReQA, not those of XQuAD"
                ) from None
    # Only now is it known which sentences of the other languages answer a question.
    answered = {
        key: [replace(one, target=tuple(correct[one.id])) for one in queries]
        for key, queries in splits.items()
    }
    return answered | {(CANDIDATES, lang): pool for _, lang in splits}


def read_mewslix(folder: Path, files: str) -> Splits:
    """Mewsli-X (Ruder et al., EMNLP 2021): news mentions, one pool of about a million descriptions.

    The publisher's script puts the news texts into `wikinews_mentions-*.jsonl`. Query and candidate are
    written as in XTREME.
    """
    splits: Splits = {}
    mentions = matching(folder, files)
    ((entities, _), *_) = matching(folder, "**/candidate_set_entities.jsonl")
    pool = []
    try:
        for path, parts in mentions:
            for row in rows(path):
                for query in _mentions(row):
                    splits.setdefault((parts["split"], query.lang), []).append(query)
        for row in rows(entities):
            text, spans = row.cell("description"), row.cells["sentence_spans"]
            lang = row.language("description_language")
            # The sentences without the line breaks between them.
            parts_of_text = " ".join(text[one["start"] : one["end"]] for one in spans).split()
            name = row.text("entity_id")
            pool.append(_candidate(name, lang, " ".join(parts_of_text), row.place))
    except (KeyError, TypeError, AttributeError):
        raise row.error("lacks a key of Mewsli-X's files; get the set again") from None
    return splits | {(CANDIDATES, lang): pool for _, lang in splits}


def _candidate(name: str, lang: str, text: str, place: str) -> Example:
    return Example(name, lang, (text,), (name,), place)


def _mentions(row: Row) -> Iterator[Example]:
    context = row.cells["context"]
    lang, text = bcp47(context["language"]), context["text"]
    sentences = [(one["start"], one["end"]) for one in context["sentence_spans"]]
    for mention in row.cells["mentions"]:
        start, end, name = (mention["mention_span"][key] for key in ("start", "end", "text"))
        if text[start:end] != name:
            raise row.error(
                f"mention {mention['example_id']} is not where it should be; run the publisher's "
                "script that puts the texts in"
            )
        # The mention, a colon, and its sentence (or sentences) with the mention in braces.
        around = [(a, b) for a, b in sentences if a < end and start < b] or [(start, end)]
        left, right = text[around[0][0] : start], text[end : around[-1][1]]
        query = " ".join(f"{name}: {left} {{ {name} }} {right}".split())
        target = (mention["entity_id"],)
        yield Example(mention["example_id"], lang, (query,), target, row.place)
