"""Every word gets a tag, whatever its script, its length and its position in a long sentence."""

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from mmalign.core.errors import UserError
from mmalign.models.text_encoder import TextEncoder
from mmalign.text.heads.tagging import TaggingModel
from mmalign.text.tasks.task import Example

LABELS = ("NOUN", "O", "VERB")
WORDS = ("red", "dog", "мяч", "赤いボール", "mwekundu", "ꦲꦏ", "0123", "ﬁne", "sleeps", "ball")
LONG = 32  # tokens that the tower takes


def tiny_tower() -> TextEncoder:
    return TextEncoder(tiny_model().text_tower.trunk, tiny_tokenizer(), max_length=LONG)


def sentence(size: int, name: str = "0") -> Example:
    words = tuple(WORDS[i % len(WORDS)] for i in range(size))
    return Example(name, "en", words, tuple(LABELS[i * i % 3] for i in range(size)))


def random_head(model: TaggingModel) -> TaggingModel:
    torch.manual_seed(0)
    torch.nn.init.normal_(model.head.weight)
    return model


@pytest.fixture
def model() -> TaggingModel:
    return random_head(TaggingModel(tiny_tower(), LABELS))


def perfect(model: TaggingModel, target_NL: torch.Tensor) -> torch.Tensor:
    """Logits that are right wherever the target says something."""
    return torch.nn.functional.one_hot(target_NL.clamp(min=0), len(model.labels)).float()


def test_the_first_sub_token_of_each_word_carries_its_tag(model: TaggingModel) -> None:
    example = sentence(4)
    batch = model.collate([example])
    tokens = batch.tokens.encoding.tokens(0)
    tagged = (batch.target[0] != -100).nonzero().flatten().tolist()
    assert [tokens[i][0] for i in tagged] == ["▁"] * 4
    assert tuple(LABELS[i] for i in batch.target[0, tagged]) == example.target
    assert tagged[0] == 1  # after <s>


@pytest.mark.parametrize("size", [1, 3, 30, 100])
def test_no_word_of_a_long_sentence_is_lost(model: TaggingModel, size: int) -> None:
    examples = [sentence(2, "short"), sentence(size, "long")]
    batch = model.collate(examples)
    assert batch.tokens.token_NL.shape[1] <= LONG
    assert (batch.target != -100).sum() == size + 2
    found = model.decode(perfect(model, batch.target), batch)
    assert found == [one.target for one in examples]
    assert (len(batch.example_N) > 2) == (size >= 30)
    # Nor any part of a word: as many tokens as in one endless sequence, the special ones aside.
    inner = model.tower.tokenizer.inner
    entire = inner(list(examples[1].texts), is_split_into_words=True, add_special_tokens=False)
    own = batch.example_N == 1
    assert int(batch.tokens.mask_NL[own].sum() - 2 * own.sum()) == len(entire["input_ids"])


def test_a_word_longer_than_the_tower_is_cut_and_keeps_its_tag(model: TaggingModel) -> None:
    example = Example("0", "en", ("dog", "ab" * 60, "ball"), ("NOUN", "VERB", "O"))
    batch = model.collate([example])
    assert batch.example_N.tolist() == [0, 0, 0]
    assert model.decode(perfect(model, batch.target), batch) == [("NOUN", "VERB", "O")]


def test_words_without_a_token_are_predicted_as_o(model: TaggingModel) -> None:
    example = Example("0", "en", ("dog", "", "ball"), ("NOUN", "VERB", "NOUN"))
    batch = model.collate([example])
    assert (batch.target != -100).sum() == 2
    assert model.decode(perfect(model, batch.target), batch) == [("NOUN", "O", "NOUN")]
    assert TaggingModel(tiny_tower(), ("NOUN", "VERB")).default == "NOUN"


def test_unknown_tags_do_not_train(model: TaggingModel) -> None:
    known = Example("0", "en", ("red", "dog"), ("O", "NOUN"))
    half = Example("0", "en", ("red", "dog"), ("O", "X"))
    none = Example("0", "en", ("red", "dog"), ("X", "X"))
    batch = model.collate([known, half, none])
    losses = model.losses(model(batch), batch)
    rows = torch.log_softmax(model(batch)[0, (batch.target[0] != -100).nonzero().flatten()], -1)
    assert losses[0].item() == pytest.approx(-(rows[0, 1] + rows[1, 0]).item() / 2, abs=1e-5)
    assert losses[1].item() == pytest.approx(-rows[0, 1].item(), abs=1e-5)
    assert losses[2].item() == 0


def test_the_loss_of_a_long_example_is_the_mean_over_its_words(model: TaggingModel) -> None:
    batch = model.collate([sentence(3), sentence(40, "long")])
    logits = model(batch)
    losses = model.losses(logits, batch)
    own = batch.example_N == 1
    chosen = batch.target[own] != -100
    expected = torch.nn.functional.cross_entropy(logits[own][chosen], batch.target[own][chosen])
    assert chosen.sum() == 40
    torch.testing.assert_close(losses[1], expected)
    assert losses.shape == (2,)


def test_predictions_do_not_depend_on_the_batch(model: TaggingModel) -> None:
    examples = [sentence(size, str(size)) for size in (50, 1, 7, 0, 23)]
    together = model.predict(examples)
    assert together == [model.predict([one])[0] for one in examples]
    assert [len(one) for one in together] == [50, 1, 7, 0, 23]  # type: ignore[arg-type]


def test_a_tokenizer_without_positions_is_one_sentence() -> None:
    class Slow:
        is_fast = False

    tower = tiny_tower()
    tower.facts = {"path": "some/model"}
    tower.tokenizer.inner, inner = Slow(), tower.tokenizer.inner
    try:
        with pytest.raises(UserError, match="some/model: its tokenizer does not locate tokens"):
            TaggingModel(tower, LABELS)
    finally:
        tower.tokenizer.inner = inner  # the tests share it
