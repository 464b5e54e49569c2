"""Documents as one graph: nodes of four types, edges of twelve.

    Outline of each document -> its edges -> numbers shifted behind those of the documents before -> Graph
    Outline, tokens           -> which tokens each part is made of                                -> Graph

    source       edge      target      holds between
    phrase       next      phrase      neighbours in a sentence, both ways
    phrase       repeats   phrase      phrases of the document that share a word other than glue, both ways
    phrase       in        sentence    a phrase and its sentence
    sentence     holds     phrase      the reverse
    sentence     with      sentence    any two sentences of the document, both ways
    phrase       in        statement   a phrase and the events in whose clauses it stands
    statement    holds     phrase      the reverse
    sentence     holds     statement   a sentence and its events
    statement    in        sentence    the reverse
    statement    in        pair        an event and the pairs that ask about it
    pair         holds     statement   the reverse
    pair         shares    pair        pairs with a common event, both ways

Documents share no edge. Edges P-P, S-P and S-E are published by name (see outline.py), the others are ours.
The pairs of n events that are all asked about have about n^3 `shares` edges: 205,320 for 60 events.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmalign.text.causality.outline import Outline, Span

Relation = tuple[str, str, str]
"""Type of the source, name, type of the target."""

NODES = ("phrase", "sentence", "statement", "pair")
RELATIONS: tuple[Relation, ...] = (
    ("phrase", "next", "phrase"),
    ("phrase", "repeats", "phrase"),
    ("phrase", "in", "sentence"),
    ("sentence", "holds", "phrase"),
    ("sentence", "with", "sentence"),
    ("phrase", "in", "statement"),
    ("statement", "holds", "phrase"),
    ("sentence", "holds", "statement"),
    ("statement", "in", "sentence"),
    ("statement", "in", "pair"),
    ("pair", "holds", "statement"),
    ("pair", "shares", "pair"),
)
PARTS = ("phrase", "sentence", "trigger", "clause")
"""What tokens are pooled to; a statement is a trigger and its clause, a pair two statements."""
FARTHEST = 3
"""Sentences between two events, and more."""

Edges = list[tuple[int, int]]


@dataclass(frozen=True)
class Graph:
    """Several documents as one graph without edges between them.

    Shapes: P pairs, M tokens of parts, E edges of a type; all int64.

    Attributes:
        tokens: by part: (2, M), places in the flattened (N, L) tokens, and the number of the part.
        counts: by part: how many there are.
        edges: by relation: (2, E), source and target.
        events_2P: numbers of the statements of each pair, the earlier first.
        distance_P: sentences between the two events, `FARTHEST` at most.
        document_P: number of the document.
    """

    tokens: dict[str, Tensor]
    counts: dict[str, int]
    edges: dict[Relation, Tensor]
    events_2P: Tensor
    distance_P: Tensor
    document_P: Tensor


def build_graph(outlines: Sequence[Outline], encoding: Any, device: torch.device) -> Graph:
    """The graph of a batch.

    A token that two windows share belongs to its parts twice, once with each of its states.

    Args:
        encoding: what the tokenizer made of the outlines' texts, in windows if need be.
    """
    counts = [_part_counts(one) for one in outlines]
    shift = [
        {name: sum(one[name] for one in counts[:number]) for name in (*PARTS, *NODES)}
        for number in range(len(outlines))
    ]
    edges: dict[Relation, Edges] = {relation: [] for relation in RELATIONS}
    for one, by in zip(outlines, shift, strict=True):
        for relation, found in edges_of(one).items():
            source, _, target = relation
            edges[relation] += [(s + by[source], t + by[target]) for s, t in found]
    pairs = [
        (first + by["statement"], second + by["statement"])
        for one, by in zip(outlines, shift, strict=True)
        for first, second in one.pairs
    ]
    documents = [number for number, one in enumerate(outlines) for _ in one.pairs]
    return Graph(
        tokens=_tokens(outlines, shift, encoding, device),
        counts={part: sum(one[part] for one in counts) for part in PARTS},
        edges={relation: _columns(found, device) for relation, found in edges.items()},
        events_2P=_columns(pairs, device),
        distance_P=torch.tensor(_distances(outlines), dtype=torch.long, device=device),
        document_P=torch.tensor(documents, dtype=torch.long, device=device),
    )


def edges_of(outline: Outline) -> dict[Relation, Edges]:
    """The edges of one document, by the numbers of its own nodes."""
    phrases, events = outline.phrases, range(len(outline.triggers))
    next_to = [
        (i, i + 1)
        for i in range(len(phrases) - 1)
        if phrases[i].sentence == phrases[i + 1].sentence
    ]
    in_sentence = [(i, one.sentence) for i, one in enumerate(phrases)]
    in_statement = [(i, event) for event in events for i in outline.phrases_of[event]]
    told_in = [(event, outline.sentence_of[event]) for event in events]
    asked_in = [(event, i) for i, pair in enumerate(outline.pairs) for event in pair]
    return {
        ("phrase", "next", "phrase"): next_to + _reversed(next_to),
        ("phrase", "repeats", "phrase"): _sharing(one.words for one in phrases),
        ("phrase", "in", "sentence"): in_sentence,
        ("sentence", "holds", "phrase"): _reversed(in_sentence),
        ("sentence", "with", "sentence"): list(permutations(range(len(outline.sentences)), 2)),
        ("phrase", "in", "statement"): in_statement,
        ("statement", "holds", "phrase"): _reversed(in_statement),
        ("sentence", "holds", "statement"): _reversed(told_in),
        ("statement", "in", "sentence"): told_in,
        ("statement", "in", "pair"): asked_in,
        ("pair", "holds", "statement"): _reversed(asked_in),
        ("pair", "shares", "pair"): _sharing(outline.pairs),
    }


def _sharing(members: Iterable[Iterable[object]]) -> Edges:
    """(a, b) and (b, a) for all that have a member in common, each once."""
    holders: defaultdict[object, list[int]] = defaultdict(list)
    for number, each in enumerate(members):
        for one in each:
            holders[one].append(number)
    found = {two for each in holders.values() for two in combinations(each, 2)}
    one_way = sorted(found)
    return one_way + _reversed(one_way)


def _reversed(edges: Edges) -> Edges:
    return [(target, source) for source, target in edges]


def _columns(rows: Edges, device: torch.device) -> Tensor:
    """(2, n) int64."""
    return torch.tensor(rows, dtype=torch.long, device=device).reshape(-1, 2).T.contiguous()


def _distances(outlines: Sequence[Outline]) -> list[int]:
    return [
        min(abs(one.sentence_of[first] - one.sentence_of[second]), FARTHEST)
        for one in outlines
        for first, second in one.pairs
    ]


def _spans(outline: Outline) -> dict[str, list[Span]]:
    return {
        "phrase": [one.span for one in outline.phrases],
        "sentence": outline.sentences,
        "trigger": outline.triggers,
        "clause": outline.clauses,
    }


def _part_counts(outline: Outline) -> dict[str, int]:
    parts = {part: len(spans) for part, spans in _spans(outline).items()}
    return {**parts, "statement": len(outline.triggers), "pair": len(outline.pairs)}


def _tokens(
    outlines: Sequence[Outline],
    shift: Sequence[dict[str, int]],
    encoding: Any,
    device: torch.device,
) -> dict[str, Tensor]:
    """By part: (2, M), see `Graph`."""
    length = encoding["input_ids"].shape[1]
    spans = [_spans(one) for one in outlines]
    found: dict[str, list[np.ndarray]] = {part: [np.zeros((2, 0), np.int64)] for part in PARTS}
    for window, document in enumerate(encoding["overflow_to_sample_mapping"].tolist()):
        places, starts, ends = _content(encoding, window)
        for part in PARTS:
            token, number = _members(spans[document][part], starts, ends)
            own = places[token] + window * length
            found[part].append(np.stack([own, number + shift[document][part]]))
    return {
        part: torch.from_numpy(np.concatenate(columns, axis=1)).to(device)
        for part, columns in found.items()
    }


def _members(
    spans: Sequence[Span], starts: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Which tokens share a character with which spans: numbers of tokens, numbers of spans, both int64.

    Tokens stand in the order of their characters, so those of a span are neighbours.
    """
    first, behind = np.array(spans, np.int64).reshape(-1, 2).T
    low = np.searchsorted(ends, first, side="right")
    high = np.searchsorted(starts, behind, side="left")
    size = (high - low).clip(min=0)
    number = np.repeat(np.arange(len(spans)), size)
    step = np.arange(len(number)) - np.repeat(size.cumsum() - size, size)
    return np.repeat(low, size) + step, number


def _content(encoding: Any, window: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Places in the window of the text's own tokens, where they start and where they end."""
    own = [place for place, one in enumerate(encoding.sequence_ids(window)) if one == 0]
    offsets = np.array(encoding.encodings[window].offsets, np.int64).reshape(-1, 2)[own]
    return np.array(own, np.int64), offsets[:, 0], offsets[:, 1]
