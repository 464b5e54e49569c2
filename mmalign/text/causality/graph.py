"""Documents as one graph: nodes of four types, edges of twelve.

    source       edge      target      holds between
    phrase       next      phrase      neighbours in a sentence, both ways
    phrase       repeats   phrase      phrases of the document that share a word other than glue, both ways
    phrase       in        sentence    a phrase and its sentence
    sentence     holds     phrase      the reverse
    sentence     with      sentence    any two sentences of the document, both ways
    phrase       in        statement   a phrase and the events in whose clauses it is
    statement    holds     phrase      the reverse
    sentence     holds     statement   a sentence and its events
    statement    in        sentence    the reverse
    statement    in        pair        an event and the pairs that ask about it
    pair         holds     statement   the reverse
    pair         shares    pair        pairs with a common event, both ways

Documents share no edge. Edges P-P, S-P and S-E are published by name (see outline.py), the others are ours.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise, permutations
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmalign.text.causality.outline import Outline, Span

Relation = tuple[str, str, str]  # type of the source, name, type of the target
Edges = list[tuple[int, int]]

NODES = ("phrase", "sentence", "statement", "pair")
# What tokens are pooled to; a statement is a trigger and its clause, a pair two statements.
PARTS = ("phrase", "sentence", "trigger", "clause")
# The largest distance in sentences between two events that the network distinguishes.
FARTHEST = 3


@dataclass(frozen=True)
class Graph:
    """Several documents as one graph without edges between them.

    Shapes: P pairs, M tokens of parts, E edges of a type; all int64.

    Attributes:
        tokens: by part: (2, M), positions in the flattened (N, L) tokens, and the number of the part.
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
    """The graph of a batch; `encoding` is the tokenizer's output for its texts, in windows if need be."""
    edges: dict[Relation, Edges] = {relation: [] for relation in RELATIONS}
    events, distances, documents = [], [], []
    before: Counter[str] = Counter()  # nodes and parts of the documents before
    shifts = []
    for number, one in enumerate(outlines):
        for relation, found in edges_of(one).items():
            source, _, target = relation
            edges[relation] += [(s + before[source], t + before[target]) for s, t in found]
        for first, second in one.pairs:
            events.append((first + before["statement"], second + before["statement"]))
            apart = abs(one.sentence_of[first] - one.sentence_of[second])
            distances.append(min(apart, FARTHEST))
            documents.append(number)
        shifts.append(before.copy())
        before.update({part: len(spans) for part, spans in _spans(one).items()})
        before.update(statement=len(one.triggers), pair=len(one.pairs))
    tokens = _tokens(outlines, shifts, encoding)
    return Graph(
        tokens={part: positions.to(device) for part, positions in tokens.items()},
        counts={part: before[part] for part in PARTS},
        edges={relation: _columns(found, device) for relation, found in edges.items()},
        events_2P=_columns(events, device),
        distance_P=torch.tensor(distances, dtype=torch.long, device=device),
        document_P=torch.tensor(documents, dtype=torch.long, device=device),
    )


def edges_of(outline: Outline) -> dict[Relation, Edges]:
    """The edges of one document, by the numbers of its own nodes."""
    phrases = outline.phrases
    sentences = enumerate(pairwise(one.sentence for one in phrases))
    next_to = [(i, i + 1) for i, (sentence, following) in sentences if sentence == following]
    in_sentence = [(i, one.sentence) for i, one in enumerate(phrases)]
    in_statement = [(i, event) for event, own in enumerate(outline.phrases_of) for i in own]
    event_in_sentence = list(enumerate(outline.sentence_of))
    in_pair = [(event, i) for i, pair in enumerate(outline.pairs) for event in pair]
    return {
        ("phrase", "next", "phrase"): next_to + _reversed(next_to),
        ("phrase", "repeats", "phrase"): _sharing(one.words for one in phrases),
        ("phrase", "in", "sentence"): in_sentence,
        ("sentence", "holds", "phrase"): _reversed(in_sentence),
        ("sentence", "with", "sentence"): list(permutations(range(len(outline.sentences)), 2)),
        ("phrase", "in", "statement"): in_statement,
        ("statement", "holds", "phrase"): _reversed(in_statement),
        ("sentence", "holds", "statement"): _reversed(event_in_sentence),
        ("statement", "in", "sentence"): event_in_sentence,
        ("statement", "in", "pair"): in_pair,
        ("pair", "holds", "statement"): _reversed(in_pair),
        # About n^3 if a document asks about all pairs of n events: 205,320 for 60 events.
        ("pair", "shares", "pair"): _sharing(outline.pairs),
    }


def _sharing(members: Iterable[Iterable[object]]) -> Edges:
    # (a, b) and (b, a) for all that have a member in common, each once.
    holders: defaultdict[object, list[int]] = defaultdict(list)
    for number, each in enumerate(members):
        for one in each:
            holders[one].append(number)
    # Sorted: the order of a set of numbers is no promise, and sums depend on the order of the edges.
    one_way = sorted({two for each in holders.values() for two in combinations(each, 2)})
    return one_way + _reversed(one_way)


def _reversed(edges: Edges) -> Edges:
    return [(target, source) for source, target in edges]


# The types of edges are those of an empty document, so that they are listed once. The weights of a saved
# network are in this order.
RELATIONS: tuple[Relation, ...] = tuple(edges_of(Outline("", [], [], [], [], [], [], [], [])))


def _columns(rows: Edges, device: torch.device) -> Tensor:
    return torch.tensor(rows, dtype=torch.long, device=device).reshape(-1, 2).T.contiguous()


def _spans(outline: Outline) -> dict[str, list[Span]]:
    phrases = [one.span for one in outline.phrases]
    parts = (phrases, outline.sentences, outline.triggers, outline.clauses)
    return dict(zip(PARTS, parts, strict=True))


def _tokens(
    outlines: Sequence[Outline], shifts: Sequence[Counter[str]], encoding: Any
) -> dict[str, Tensor]:
    # A token that two windows share belongs to its parts twice, once with each of its states.
    length = encoding["input_ids"].shape[1]
    spans = [_spans(one) for one in outlines]
    found: dict[str, list[np.ndarray]] = {part: [np.zeros((2, 0), np.int64)] for part in PARTS}
    for window, document in enumerate(encoding["overflow_to_sample_mapping"].tolist()):
        # The text's own tokens: special ones and padding belong to no sequence.
        own = [i for i, one in enumerate(encoding.sequence_ids(window)) if one == 0]
        offsets = np.array(encoding.encodings[window].offsets, np.int64).reshape(-1, 2)[own]
        position = np.array(own, np.int64) + window * length
        for part in PARTS:
            token, number = _members(spans[document][part], offsets[:, 0], offsets[:, 1])
            found[part].append(np.stack([position[token], number + shifts[document][part]]))
    return {part: torch.from_numpy(np.concatenate(each, axis=1)) for part, each in found.items()}


def _members(
    spans: Sequence[Span], starts: np.ndarray, ends: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    # Which tokens share a character with which spans: numbers of tokens, numbers of spans.
    first, end = np.array(spans, np.int64).reshape(-1, 2).T
    # Tokens are in the order of their characters, so those of a span are neighbours.
    low = np.searchsorted(ends, first, side="right")
    high = np.searchsorted(starts, end, side="left")
    size = (high - low).clip(min=0)
    number = np.repeat(np.arange(len(spans)), size)
    step = np.arange(len(number)) - np.repeat(size.cumsum() - size, size)
    return np.repeat(low, size) + step, number
