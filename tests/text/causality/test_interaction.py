"""Messages flow along every type of edge; who else is in the batch, and padding, change nothing."""

from dataclasses import replace

import pytest
import torch
from causality_cases import LONG, alone, crowded, document, overlapping, storm, tiny_tower
from torch import Tensor

from mmalign.models.text_encoder import TextEncoder
from mmalign.text.causality.config import CausalityConfig
from mmalign.text.causality.graph import RELATIONS, Graph, Relation, build_graph
from mmalign.text.causality.interaction import CausalityHead
from mmalign.text.causality.outline import outline
from mmalign.text.heads.base import mean_per_owner

CONFIG = CausalityConfig(width=16, heads=2, dropout=0.0)


@pytest.fixture(scope="module")
def tower() -> TextEncoder:
    return tiny_tower()


def head_of(tower: TextEncoder, config: CausalityConfig = CONFIG) -> CausalityHead:
    torch.manual_seed(0)
    return CausalityHead(tower.state_width, config).eval()


def states_and_graph(tower: TextEncoder, *examples: object) -> tuple[Tensor, Graph]:
    outlines = [outline(one) for one in examples or (storm(), crowded(8))]  # type: ignore[arg-type]
    tokens = tower.tokenize(
        [one.text for one in outlines], stride=8, return_overflowing_tokens=True
    )
    graph = build_graph(outlines, tokens.encoding, torch.device("cpu"))
    return tower.states(tokens).detach(), graph


def logits(head: CausalityHead, state_NLF: Tensor, graph: Graph) -> Tensor:
    return head.logits(head.nodes(state_NLF, graph), graph)


def without(graph: Graph, relation: Relation) -> Graph:
    return replace(graph, edges={**graph.edges, relation: torch.empty(2, 0, dtype=torch.long)})


@pytest.mark.parametrize("relation", RELATIONS, ids=" ".join)
def test_an_edge_type_changes_the_logits_and_its_weights_learn(
    tower: TextEncoder, relation: Relation
) -> None:
    head = head_of(tower)
    state_NLF, graph = states_and_graph(tower)
    found = logits(head, state_NLF, graph)
    assert not torch.allclose(found, logits(head, state_NLF, without(graph, relation)), atol=1e-6)
    found.square().sum().backward()
    assert head.network is not None
    for layer in head.network.layers:
        if relation in layer.relations:
            own = layer.attention.convs[relation]
            assert own.lin_l.weight.grad.abs().sum() > 0
            # A target with a single source gives it all its attention, whatever the scores are.
            chooses = graph.edges[relation][1].bincount().max() > 1
            assert (own.att.grad.abs().sum() > 0) == chooses


def test_no_weight_is_there_for_nothing(tower: TextEncoder) -> None:
    head = head_of(tower)
    logits(head, *states_and_graph(tower)).square().sum().backward()
    assert [name for name, one in head.named_parameters() if one.grad is None] == []


def test_the_last_layer_ends_where_the_logits_read(tower: TextEncoder) -> None:
    network = head_of(tower).network
    assert network is not None
    assert network.layers[0].relations == RELATIONS
    assert {target for _, _, target in network.layers[-1].relations} == {"statement", "pair"}


@pytest.mark.parametrize("graph", [True, False])
def test_documents_together_are_as_one_by_one(tower: TextEncoder, graph: bool) -> None:
    head = head_of(tower, CONFIG.model_copy(update={"graph": graph}))
    examples = [storm(), alone(), crowded(8), overlapping()]
    together = logits(head, *states_and_graph(tower, *examples))
    apart = [logits(head, *states_and_graph(tower, one)) for one in examples]
    assert together.shape == (4 + 28 + 3, 2)
    torch.testing.assert_close(together, torch.cat(apart), atol=1e-6, rtol=1e-5)


def test_padding_changes_nothing(tower: TextEncoder) -> None:
    head = head_of(tower)
    short = document("0", ("a dog sleeps",), ("dog", "sleeps"), ((0, 1, True),))
    outlines = [outline(short), outline(alone())]
    found = []
    for padding in ({}, {"pad_to_multiple_of": LONG}):
        tokens = tower.tokenize(
            [each.text for each in outlines],
            stride=8,
            return_overflowing_tokens=True,
            **padding,
        )
        graph = build_graph(outlines, tokens.encoding, torch.device("cpu"))
        found.append((tokens.token_NL.shape[1], logits(head, tower.states(tokens), graph)))
    assert found[0][0] < found[1][0]
    torch.testing.assert_close(found[0][1], found[1][1], atol=1e-6, rtol=1e-5)


def test_without_the_graph_a_pair_looks_at_its_own_events_only(tower: TextEncoder) -> None:
    state_NLF, graph = states_and_graph(tower, storm())
    outside = set(range(state_NLF.shape[0] * state_NLF.shape[1]))
    for part in ("trigger", "clause"):
        position, number = graph.tokens[part]
        outside -= set(position[(number == 0) | (number == 1)].tolist())
    changed = state_NLF.clone().flatten(0, 1)
    changed[sorted(outside)] += 1
    for is_on in (True, False):
        head = head_of(tower, CONFIG.model_copy(update={"graph": is_on}))
        assert (head.network is not None) == is_on
        before, after = (
            logits(head, states, graph)[0] for states in (state_NLF, changed.view_as(state_NLF))
        )
        assert torch.equal(before, after) != is_on


def test_the_mean_of_parts_is_zero_without_any() -> None:
    value_N2, owner_N = (
        torch.tensor([[0.0, 1.0], [8.0, 9.0], [10.0, 11.0]]),
        torch.tensor([0, 0, 2]),
    )
    expected = torch.tensor([[4.0, 5.0], [0.0, 0.0], [10.0, 11.0]])
    torch.testing.assert_close(mean_per_owner(value_N2, owner_N, 3), expected)
    torch.testing.assert_close(mean_per_owner(value_N2[:, 1], owner_N, 3), expected[:, 1])


def test_documents_without_pairs_or_events(tower: TextEncoder) -> None:
    found = logits(head_of(tower), *states_and_graph(tower, alone()))
    assert found.shape == (0, 2)
