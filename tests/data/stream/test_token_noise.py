"""Tokens that are left out or hidden: how many, which, and that special ones never are."""

import copy

import numpy as np
import pytest
import torch
from tiny import tiny_tokenizer

from mmalign.core.batch import NOT_PREDICTED
from mmalign.core.errors import UserError
from mmalign.data.stream.token_noise import TokenMasker, drop_tokens


def test_token_dropout_leaves_out_about_the_stated_share() -> None:
    token_NL = torch.arange(1, 2001).reshape(20, 100)
    mask_NL = torch.ones(20, 100, dtype=torch.int64)
    mask_NL[0, 3:] = 0
    rngs = [np.random.default_rng(i) for i in range(20)]
    kept_NL, kept_mask_NL = drop_tokens(token_NL, mask_NL, 0, 0.4, rngs)
    lengths = kept_mask_NL.sum(1)
    assert lengths[1:].float().mean() == pytest.approx(2 + 98 * 0.6, abs=3)
    assert kept_NL.shape[1] == int(lengths.max())
    for row, length in enumerate(lengths.tolist()):
        left = kept_NL[row, :length]
        assert (left.diff() > 0).all()  # the order stays
        assert left[0] == token_NL[row, 0]
        assert left[-1] == token_NL[row, 2 if row == 0 else 99]
        assert (kept_NL[row, length:] == 0).all()


def test_tokens_are_masked_as_bert_does() -> None:
    tokenizer = tiny_tokenizer()
    masker = TokenMasker(tokenizer, 0.15)
    generator = torch.Generator().manual_seed(0)
    token_NL = torch.randint(0, tokenizer.vocabulary, (400, 200), generator=generator)
    mask_NL = (torch.arange(200) < torch.arange(1, 401)[:, None]).to(torch.int64)
    rngs = [np.random.default_rng(row) for row in range(400)]
    hidden_NL, label_NL = masker(token_NL, mask_NL, rngs)
    chosen_NL = label_NL != NOT_PREDICTED
    special = torch.tensor(tokenizer.special_ids)
    ordinary_NL = mask_NL.bool() & ~torch.isin(token_NL, special)
    assert not (chosen_NL & ~ordinary_NL).any()
    assert label_NL[chosen_NL].equal(token_NL[chosen_NL])
    assert hidden_NL[~chosen_NL].equal(token_NL[~chosen_NL])
    assert chosen_NL.sum() / ordinary_NL.sum() == pytest.approx(0.15, abs=0.006)
    now, was = hidden_NL[chosen_NL], token_NL[chosen_NL]
    assert (now == tokenizer.mask_id).float().mean() == pytest.approx(0.8, abs=0.015)
    # A random token is by chance the old one once in about 150 draws.
    assert (now == was).float().mean() == pytest.approx(0.1, abs=0.015)
    random = now[(now != tokenizer.mask_id) & (now != was)]
    assert not torch.isin(random, special).any()
    assert len(random.unique()) == tokenizer.vocabulary - len(special)


def test_a_tokenizer_without_a_mask_token_is_refused() -> None:
    tokenizer = copy.copy(tiny_tokenizer())
    tokenizer.mask_id = None
    with pytest.raises(UserError, match="needs a mask token and this tokenizer has none"):
        TokenMasker(tokenizer, 0.15)
