"""Heads on features: what they see, what they lose, what they say."""

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_model, tiny_tokenizer

from mmalign.models.text_encoder import TextEncoder
from mmalign.text.heads.base import TaskModel
from mmalign.text.heads.features import (
    ChoiceModel,
    ClassificationModel,
    FeatureHead,
    Pairs,
    SimilarityModel,
)
from mmalign.text.tasks.task import Example

LABELS = ("animal", "thing")
WORDS = ("dog", "red ball", "cat", "green chair", "Hund", "roter Ball", "mbwa", "0123")
PAIRS: tuple[Pairs, ...] = ("joint", "separate")


@pytest.fixture
def tower() -> TextEncoder:
    model = tiny_model()
    return TextEncoder(
        model.text_tower.trunk,
        tiny_tokenizer(),
        projection=model.text_projection,
        unit_length=True,
        max_length=32,
    )


def single() -> list[Example]:
    return [Example(str(i), "en", (word,), LABELS[i % 2]) for i, word in enumerate(WORDS)]


def pairs() -> list[Example]:
    """Whether the second text is the first."""
    rows = [(one, other) for one in WORDS[:4] for other in WORDS[:4]]
    return [Example(str(i), "en", row, LABELS[row[0] == row[1]]) for i, row in enumerate(rows)]


def choices() -> list[Example]:
    return [
        Example("0", "en", ("a red ball", "dog", "red ball", "cat"), 1),
        Example("1", "en", ("a dog", "dog", "chair"), 0),
        Example("2", "en", ("the cat sleeps", "ball", "0123", "red", "cat"), 3),
    ]


def random_weights(model: TaskModel) -> None:
    torch.manual_seed(0)
    torch.nn.init.normal_(model.head.output.weight)  # type: ignore[union-attr, arg-type]


def train(model: TaskModel, examples: list[Example], steps: int = 80) -> None:
    model.prepare(examples)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.005)
    batch = model.collate(examples)
    for _ in range(steps):
        optimizer.zero_grad()
        model.losses(model(batch), batch).mean().backward()
        optimizer.step()


def test_the_head_moves_features_to_the_origin_and_to_size_1() -> None:
    feature_ND = 5 + 0.01 * torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    head = FeatureHead(6, 6, separate=False)
    head.fit_scale(feature_ND)
    with torch.no_grad():
        head.output.weight.copy_(torch.eye(6))
    seen = head(feature_ND)
    torch.testing.assert_close(seen.mean(0), torch.zeros(6), atol=1e-3, rtol=0)
    assert seen.square().mean().item() == pytest.approx(1, abs=1e-3)
    ratio = (seen[0] - seen[1]).norm() / (feature_ND[0] - feature_ND[1]).norm()
    assert ratio.item() == pytest.approx(head.scale_1.item(), rel=1e-3)


def test_separate_texts_meet_as_u_v_their_distance_and_their_product() -> None:
    u, v = torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 5.0]])
    head = FeatureHead(2, 8, separate=True)
    with torch.no_grad():
        head.output.weight.copy_(torch.eye(8))
    assert head(u, v).tolist() == [[1, -2, 3, 5, 2, 7, 3, -10]]


def test_prepare_takes_shift_and_factor_from_the_training_texts(tower: TextEncoder) -> None:
    model = ClassificationModel(tower, LABELS, None)
    model.prepare(single())
    feature_ND = torch.from_numpy(tower.encode(WORDS))
    torch.testing.assert_close(model.head.centre_D, feature_ND.mean(0))
    spread = (feature_ND - feature_ND.mean(0)).square().mean().sqrt()
    assert model.head.scale_1.item() == pytest.approx(1 / spread.item(), rel=1e-4)


def test_classification_is_cross_entropy_and_unknown_labels_do_not_train(
    tower: TextEncoder,
) -> None:
    model = ClassificationModel(tower, LABELS, None)
    random_weights(model)
    batch = model.collate([*single(), Example("x", "en", ("dog",), "plant")])
    logits = model(batch)
    losses = model.losses(logits, batch)
    expected = F.cross_entropy(logits[:8], torch.tensor([0, 1] * 4), reduction="none")
    torch.testing.assert_close(losses[:8], expected)
    assert losses[8] == 0


def test_it_learns_labels_of_texts(tower: TextEncoder) -> None:
    torch.manual_seed(0)
    model = ClassificationModel(tower, LABELS, None, hidden=16)
    train(model, single())
    assert model.predict(single()) == [one.target for one in single()]
    probability_NK = model.probabilities(single())
    assert probability_NK.shape == (8, 2)
    assert [LABELS[i] for i in probability_NK.argmax(1)] == [one.target for one in single()]
    assert model.predict(single()[::-1]) == model.predict(single())[::-1]


@pytest.mark.parametrize("how", PAIRS)
def test_pairs_are_one_sequence_or_two(tower: TextEncoder, how: Pairs) -> None:
    model = ClassificationModel(tower, LABELS, how)
    assert model.predict([]) == []
    batch = model.collate(pairs())
    assert len(batch.tokens.token_NL) == len(batch.example_N) == (32 if how == "separate" else 16)


@pytest.mark.parametrize("how", PAIRS)
def test_choices_are_learnt_and_do_not_depend_on_the_batch(tower: TextEncoder, how: Pairs) -> None:
    model = ChoiceModel(tower, how)
    random_weights(model)
    together = model.collate(choices())
    logits, losses = model(together), model.losses(model(together), together)
    assert logits.shape == (3, 4)
    for i, one in enumerate(choices()):
        alone = model.collate([one])
        count = len(one.texts) - 1
        torch.testing.assert_close(logits[i, :count], model(alone)[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            losses[i : i + 1], model.losses(model(alone), alone), atol=1e-4, rtol=1e-4
        )
        assert logits[i].softmax(0)[count:].sum() == 0
    train(model, choices())
    assert model.predict(choices()) == [1, 0, 3]


def test_similarity_is_learnt_in_deviations_and_predicted_in_scores(tower: TextEncoder) -> None:
    examples = [Example(one.id, "en", one.texts, 2.0 + (one.target == "thing")) for one in pairs()]
    model = SimilarityModel(tower, "separate")
    model.prepare(examples)
    assert model.mean == pytest.approx(2.25) and model.deviation == pytest.approx(0.1875**0.5)
    batch = model.collate(examples)
    assert batch.target.mean().item() == pytest.approx(0, abs=1e-5)
    assert model.predict(examples[:2]) == pytest.approx([2.25, 2.25])  # the layer starts at zero
    expected = torch.tensor([((one.target - 2.25) ** 2) / 0.1875 for one in examples])  # type: ignore[operator]
    torch.testing.assert_close(model.losses(model(batch), batch), expected, atol=1e-5, rtol=1e-5)
    train(model, examples, steps=60)
    found = torch.tensor(model.predict(examples))
    assert found[[0, 5, 10, 15]].mean() > found.mean() + 0.2

    # One training score has no deviation to divide by.
    model = SimilarityModel(tower, "separate")
    model.prepare([Example("0", "en", ("dog", "cat"), 1.5)])
    assert model.predict([Example("1", "en", ("dog", "ball"), 0.0)]) == [1.5]


@pytest.mark.parametrize("how", ["joint", "separate"])
def test_features_are_kept_until_a_weight_changes(
    tower: TextEncoder, how: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ClassificationModel(tower, LABELS, how).eval()
    random_weights(model)
    examples = pairs()
    encoded: list[tuple[str, ...]] = []
    encode_rows = tower.encode_rows
    monkeypatch.setattr(
        tower, "encode_rows", lambda rows: encoded.extend(rows) or encode_rows(rows)
    )

    def probabilities() -> torch.Tensor:
        """Found through the cache, and compared with reading every batch again."""
        encoded.clear()
        found = model.probabilities(examples)
        with torch.no_grad():
            again = model(model.collate(examples)).softmax(-1)
        torch.testing.assert_close(found, again)
        return found

    rows = sorted(set(model.sequences(examples)))
    before = probabilities()
    assert sorted(encoded) == rows
    assert torch.equal(probabilities(), before) and not encoded
    optimizer = torch.optim.AdamW(tower.parameters(), lr=0.01)
    model.losses(model(model.collate(examples)), model.collate(examples)).sum().backward()
    optimizer.step()
    after = probabilities()
    assert not torch.equal(after, before) and sorted(encoded) == rows
    with torch.no_grad():  # as the best weights are put back
        for parameter in tower.parameters():
            parameter.copy_(parameter * 0.5)
    assert not torch.equal(probabilities(), after)


@pytest.mark.parametrize("how", ["joint", "separate"])
def test_a_fixed_tower_reads_a_row_once_in_all_epochs(
    tower: TextEncoder, how: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = ClassificationModel(tower.requires_grad_(False), LABELS, how).eval()
    random_weights(model)
    examples = pairs()
    wanted = super(ClassificationModel, model).logits(
        tower.states((batch := model.collate(examples)).tokens), batch
    )
    torch.testing.assert_close(model(batch), wanted)
    monkeypatch.setattr(tower, "states", lambda *_: pytest.fail("read again"))
    (gradient,) = torch.autograd.grad(model(batch).square().sum(), model.head.output.weight)
    assert gradient.abs().sum() > 0
