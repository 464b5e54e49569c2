"""The trained tokenizer: the same captions give the same one, and it survives its folder."""

from pathlib import Path

import pytest
from tiny import TEXTS, tiny_tokenizer

from mmalign.core.errors import UserError
from mmalign.data.tokenizer import load_tokenizer, train_tokenizer


def test_the_same_captions_give_the_same_tokenizer() -> None:
    one, two = (train_tokenizer(TEXTS * 4, 160) for _ in range(2))
    assert one.inner.backend_tokenizer.to_str() == two.inner.backend_tokenizer.to_str()


def test_ids_and_mask(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS * 4, 160)
    token_NL, mask_NL = tokenizer(["a red ball", "красный мяч и собака", ""], max_length=32)
    assert token_NL.shape == mask_NL.shape
    assert token_NL[:, 0].tolist() == [1, 1, 1]
    assert (token_NL[mask_NL == 0] == tokenizer.padding_id).all()
    assert int(token_NL.max()) < tokenizer.vocabulary
    assert tokenizer(TEXTS, max_length=6)[0].shape == (len(TEXTS), 6)
    tokenizer.save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again(TEXTS, 32)[0].equal(tokenizer(TEXTS, 32)[0])
    assert (again.vocabulary, again.padding_id) == (tokenizer.vocabulary, tokenizer.padding_id)


def test_padding_is_on_the_right_whatever_a_tokenizer_is_used_to() -> None:
    tokenizer = train_tokenizer(TEXTS * 4, 160)
    tokenizer.inner.padding_side = "left"
    mask_NL = tokenizer(["a red ball", "red"], max_length=32)[1]
    assert mask_NL[1, 0] == 1 and mask_NL[1, -1] == 0


def test_what_a_call_asked_for_is_not_saved(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(TEXTS * 4, 160)
    tokenizer.save(tmp_path / "new")
    tokenizer(TEXTS, max_length=6)
    tokenizer.save(tmp_path / "used")
    new, used = ((tmp_path / name / "tokenizer.json").read_bytes() for name in ("new", "used"))
    assert new == used


def test_a_missing_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be loaded"):
        load_tokenizer(tmp_path / "nothing")


@pytest.mark.parametrize("text", ["a\ud800b", "\udfff", "\ud83d"])
def test_half_of_a_surrogate_pair_is_refused(text: str) -> None:
    with pytest.raises(UserError, match=r"the text '.*\\u.*' holds half of a surrogate pair"):
        tiny_tokenizer()(["fine", text], 16)


def test_control_characters_are_read() -> None:
    token_NL, mask_NL = tiny_tokenizer()(["a\x00b\x1b\x7f\u0085c", "\x00", "\U000e0001"], 16)
    assert token_NL.shape == mask_NL.shape
