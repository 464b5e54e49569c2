"""The contrast against a plain loop in double precision, gradients included."""

import math

import numpy as np
import pytest
import torch
from causality_cases import document, overlapping, storm
from torch import Tensor, nn

from mmalign.text.causality.config import ContrastConfig
from mmalign.text.causality.contrast import contrast_loss, info_nce, view_of
from mmalign.text.robust.code_switch import CodeSwitchConfig
from mmalign.text.tasks.task import Causality, Example

VIEW = CodeSwitchConfig(kind="code_switch", dictionaries="unused")


def rows(seed: int, count: int = 7, width: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(count, width, generator=generator, dtype=torch.float64)
    return drawn.requires_grad_()


def plain(one: Tensor, other: Tensor, temperature: float, negative: Tensor | None) -> Tensor:
    """Row by row, candidate by candidate."""

    def cosine(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())

    total = torch.zeros((), dtype=torch.float64)
    count = len(one)
    for queries, keys in ((one, other), (other, one)):
        for i in range(count):
            scores = [
                cosine(queries[i], keys[j]) / temperature
                for j in range(count)
                if j == i or negative is None or negative[i, j]
            ]
            own = cosine(queries[i], keys[i]) / temperature
            total = total + torch.stack(scores).exp().sum().log() - own
    return total / (2 * count)


@pytest.mark.parametrize("temperature", [0.1, 1.0])
@pytest.mark.parametrize("with_labels", [False, True])
def test_the_loss_and_its_gradients(temperature: float, with_labels: bool) -> None:
    label = torch.tensor([0, 1, 0, 0, 1, 0, 0])
    negative = label[:, None] != label[None, :] if with_labels else None
    gradients = []
    values = []
    for loss in (info_nce, plain):
        one, other = rows(0), rows(1)
        value = loss(one, other, temperature, negative)
        value.backward()
        values.append(value.detach())
        gradients.append((one.grad, other.grad))
    torch.testing.assert_close(values[0], values[1])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_pairs_of_the_same_label_are_not_driven_apart() -> None:
    nodes = {name: rows(i) for i, name in enumerate(("sentence", "statement", "pair"))}
    view = {name: rows(i + 3) for i, name in enumerate(nodes)}
    project = nn.ModuleDict({name: nn.Identity() for name in nodes})
    config = ContrastConfig(view=VIEW, sentence=0.3, statement=0.5, pair=0.7)
    label = torch.tensor([1, 0, 0, 1, 0, 0, 0])
    parts = {name: info_nce(nodes[name], view[name], 0.1) for name in ("sentence", "statement")}
    opposite = label[:, None] != label[None, :]
    expected = 0.3 * parts["sentence"] + 0.5 * parts["statement"]
    expected = expected + 0.7 * info_nce(nodes["pair"], view["pair"], 0.1, opposite)
    torch.testing.assert_close(contrast_loss(nodes, view, label, project, config), expected)
    alike = contrast_loss(nodes, view, torch.zeros(7, dtype=torch.long), project, config)
    torch.testing.assert_close(alike, 0.3 * parts["sentence"] + 0.5 * parts["statement"])


def test_a_weight_of_zero_leaves_the_granularity_out() -> None:
    nodes = {name: rows(i) for i, name in enumerate(("sentence", "statement", "pair"))}
    project = nn.ModuleDict({"statement": nn.Identity()})  # the others are not asked for
    config = ContrastConfig(view=VIEW, sentence=0, statement=1, pair=0)
    found = contrast_loss(nodes, nodes, torch.zeros(7, dtype=torch.long), project, config)
    torch.testing.assert_close(found, info_nce(nodes["statement"], nodes["statement"], 0.1))


def test_no_rows_one_row_and_equal_rows() -> None:
    nothing = rows(0)[:0]
    assert info_nce(nothing, nothing, 0.1).item() == 0
    assert info_nce(rows(0, 1), rows(1, 1), 0.1).item() == 0
    same = torch.ones(4, 3)
    assert info_nce(same, same, 0.1).item() == pytest.approx(math.log(4))


TABLES = {"de": {"storm": ("Sturm",), "the": ("der",), "war": ("sehr langer Krieg",)}}


def config(sentences: float = 1.0, words: float = 1.0) -> CodeSwitchConfig:
    return CodeSwitchConfig(
        kind="code_switch", dictionaries="unused", sentence_ratio=sentences, token_ratio=words
    )


def triggers(example: Example) -> list[str]:
    assert isinstance(example.target, Causality)
    return [example.texts[one.sentence][one.start : one.end] for one in example.target.events]


def view(example: Example, seed: int = 0, **ratios: float) -> Example:
    return view_of(example, TABLES, config(**ratios), np.random.default_rng(seed))


def test_events_stand_where_their_words_went() -> None:
    found = view(storm())
    assert found.texts[0] == "der Sturm caused der flood , and der flood grew ."
    assert triggers(found) == ["Sturm", "flood", "sleeps", "ended"]
    assert isinstance(found.target, Causality)
    assert found.target.pairs == storm().target.pairs  # type: ignore[union-attr]
    assert (found.id, found.lang) == ("storm", "en")


def test_translations_of_several_words_and_overlapping_triggers() -> None:
    found = view(overlapping())
    assert triggers(found) == ["civil sehr langer Krieg", "sehr langer Krieg", "ended"]


def test_a_trigger_takes_its_whole_word() -> None:
    found = view(document("0", ("a  prewar, storm",), ("war", "storm"), ()))
    assert found.texts == ("a  prewar, Sturm",)
    assert triggers(found) == ["prewar,", "Sturm"]


def test_nothing_is_switched_without_a_chance_and_draws_differ() -> None:
    assert view(storm(), words=0.0) == storm()
    assert view(storm(), sentences=0.0) == storm()
    drawn = {view(storm(), seed, words=0.5).texts for seed in range(20)}
    assert len(drawn) > 3
    assert view(storm(), 3, words=0.5) == view(storm(), 3, words=0.5)
