"""Edges against a slow plain construction, tokens against the characters, batches against documents."""

from itertools import product

import pytest
import torch
from causality_cases import alone, crowded, overlapping, storm, tiny_tower

from mmalign.models.text_encoder import TextEncoder
from mmalign.text.causality.graph import (
    PARTS,
    RELATIONS,
    Edges,
    Graph,
    Relation,
    build_graph,
    edges_of,
)
from mmalign.text.causality.outline import Outline, outline, overlap
from mmalign.text.tasks.task import Example

CPU = torch.device("cpu")


def graph_of(tower: TextEncoder, examples: list[Example], **padding: int) -> Graph:
    outlines = [outline(one) for one in examples]
    options = {"stride": 8, "return_overflowing_tokens": True, **padding}
    encoding = tower.tokenize([one.text for one in outlines], **options).encoding
    return build_graph(outlines, encoding, CPU)


def plain_edges(one: Outline) -> dict[Relation, set[tuple[int, int]]]:
    """Every pair of nodes of every type is asked whether it is joined."""
    phrases, sentences, events, pairs = one.phrases, one.sentences, one.triggers, one.pairs
    sizes = {
        "phrase": len(phrases),
        "sentence": len(sentences),
        "statement": len(events),
        "pair": len(pairs),
    }

    def position(span: tuple[int, int]) -> int:
        return next(i for i, sentence in enumerate(sentences) if overlap(span, sentence))

    def is_in(i: int, event: int) -> bool:
        return overlap(phrases[i].span, one.clauses[event])

    joined = {
        "phrase next phrase": lambda a, b: (
            abs(a - b) == 1 and position(phrases[a].span) == position(phrases[b].span)
        ),
        "phrase repeats phrase": lambda a, b: a != b and bool(phrases[a].words & phrases[b].words),
        "phrase in sentence": lambda a, b: position(phrases[a].span) == b,
        "sentence holds phrase": lambda a, b: position(phrases[b].span) == a,
        "sentence with sentence": lambda a, b: a != b,
        "phrase in statement": is_in,
        "statement holds phrase": lambda a, b: is_in(b, a),
        "sentence holds statement": lambda a, b: position(events[b]) == a,
        "statement in sentence": lambda a, b: position(events[a]) == b,
        "statement in pair": lambda a, b: a in pairs[b],
        "pair holds statement": lambda a, b: b in pairs[a],
        "pair shares pair": lambda a, b: a != b and bool({*pairs[a]} & {*pairs[b]}),
    }
    return {
        relation: {
            (a, b)
            for a, b in product(range(sizes[relation[0]]), range(sizes[relation[2]]))
            if joined[" ".join(relation)](a, b)
        }
        for relation in RELATIONS
    }


@pytest.mark.parametrize("example", [storm(), alone(), overlapping(), crowded(9)])
def test_the_edges_are_those_of_the_plain_construction(example: Example) -> None:
    one = outline(example)
    found = edges_of(one)
    assert tuple(found) == RELATIONS
    for relation, edges in plain_edges(one).items():
        assert sorted(found[relation]) == sorted(edges), relation  # and none twice


def test_every_type_of_edge_occurs() -> None:
    assert all(edges_of(outline(storm())).values())


def test_sixty_events_share_as_many_edges_as_said() -> None:
    shares: Edges = edges_of(outline(crowded()))["pair", "shares", "pair"]
    assert len(shares) == 60 * 59 * 58 == 205_320


def test_tokens_are_those_whose_characters_a_part_has() -> None:
    tower = tiny_tower()
    examples = [crowded(9), storm()]
    outlines = [outline(one) for one in examples]
    tokens = tower.tokenize(
        [one.text for one in outlines], stride=8, return_overflowing_tokens=True
    )
    graph = build_graph(outlines, tokens.encoding, CPU)
    assert len(tokens.token_NL) > 3  # windows
    length = tokens.token_NL.shape[1]
    document = tokens.encoding["overflow_to_sample_mapping"].tolist()
    shift = len(outlines[0].triggers)
    expected = set()
    for window, encoding in enumerate(tokens.encoding.encodings):
        for position, (start, end) in enumerate(encoding.offsets):
            if encoding.special_tokens_mask[position] == 0:
                for number, span in enumerate(outlines[document[window]].triggers):
                    if overlap(span, (start, end)):
                        expected.add(
                            (window * length + position, number + shift * document[window])
                        )
    assert set(zip(*graph.tokens["trigger"].tolist(), strict=True)) == expected
    # Every event has tokens, also those that only a later window holds.
    assert set(graph.tokens["trigger"][1].tolist()) == set(range(graph.counts["trigger"]))


def test_a_batch_is_its_documents_side_by_side() -> None:
    tower = tiny_tower()
    examples = [storm(), alone(), crowded(7), overlapping()]
    together = graph_of(tower, examples)
    apart = [graph_of(tower, [one]) for one in examples]
    for part in PARTS:
        assert together.counts[part] == sum(one.counts[part] for one in apart)
    for relation in RELATIONS:
        assert together.edges[relation].shape[1] == sum(g.edges[relation].shape[1] for g in apart)
    statements = torch.tensor([0, *(one.counts["clause"] for one in apart)]).cumsum(0)
    shifted = [one.events_2P + statements[i] for i, one in enumerate(apart)]
    torch.testing.assert_close(together.events_2P, torch.cat(shifted, dim=1))
    assert together.document_P.tolist() == [0] * 4 + [2] * 21 + [3] * 3
    assert together.distance_P.tolist()[:4] == [0, 1, 2, 1]
    for source, target in together.edges["statement", "in", "pair"].T.tolist():
        assert source in together.events_2P[:, target]
