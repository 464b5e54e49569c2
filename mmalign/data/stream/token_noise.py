"""Noise on the tokens of captions in training: some are left out, some are masked.

    token_NL, mask_NL -> drop_tokens (word dropout) -> TokenMasker (masked language modelling) -> label_NL

Every caption draws from a generator of its own, so its noise depends neither on its neighbours in the batch
nor on the number of ranks.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mmalign.core.batch import NOT_PREDICTED
from mmalign.core.errors import UserError
from mmalign.data.tokenizer import Tokenizer


def drop_tokens(
    token_NL: Tensor,
    mask_NL: Tensor,
    padding_id: int,
    share: float,
    rngs: Sequence[np.random.Generator],
) -> tuple[Tensor, Tensor]:
    """The captions without about `share` of their tokens, cut to the longest one that is left.

    The first and the last token always stay. Padding is on the right.
    """
    kept_NL = mask_NL.bool()
    for row, (length, rng) in enumerate(zip(mask_NL.sum(1).tolist(), rngs, strict=True)):
        inner = torch.from_numpy(rng.random(max(0, length - 2)) >= share)
        kept_NL[row, 1 : length - 1] = inner
    # Kept tokens first, in their old order, then padding.
    order_NL = torch.argsort(kept_NL.logical_not().to(torch.int8), dim=1, stable=True)
    longest = int(kept_NL.sum(1).max())
    mask_left_NL = torch.gather(kept_NL, 1, order_NL)[:, :longest]
    token_left_NL = torch.gather(token_NL, 1, order_NL)[:, :longest]
    return token_left_NL.where(mask_left_NL, padding_id), mask_left_NL.to(torch.int64)


class TokenMasker:
    """Chooses the tokens that masked language modelling predicts (BERT, arXiv 1810.04805, section 3.1).

    Each token is chosen with probability `share`, but never a special token. Of the chosen ones 80 % become
    the mask token, 10 % a random token that is not special, and 10 % stay.

    Raises:
        UserError: the tokenizer has no mask token.
    """

    def __init__(self, tokenizer: Tokenizer, share: float) -> None:
        if tokenizer.mask_id is None:
            raise UserError(
                "objective: masked language modelling needs a mask token and this tokenizer has none; give "
                "another `tokenizer.name`, or train one with `tokenizer.kind: trained`"
            )
        self.mask_id = tokenizer.mask_id
        self.share = share
        self.is_text_V = torch.ones(tokenizer.vocabulary, dtype=torch.bool)
        self.is_text_V[list(tokenizer.special_ids)] = False
        self.text_ids = self.is_text_V.nonzero().squeeze(1)

    def __call__(
        self, token_NL: Tensor, mask_NL: Tensor, rngs: Sequence[np.random.Generator]
    ) -> tuple[Tensor, Tensor]:
        """token_NL as the model sees it, and label_NL: the token that was there, or NOT_PREDICTED."""
        # Three draws per token: whether it is chosen, what becomes of it, and by which token it is replaced.
        draw_3NL = torch.zeros(3, *token_NL.shape, dtype=torch.float64)
        for row, (is_token_L, rng) in enumerate(zip(mask_NL.bool(), rngs, strict=True)):
            draw_3NL[:, row, is_token_L] = torch.from_numpy(rng.random((3, int(is_token_L.sum()))))
        chosen_NL = (draw_3NL[0] < self.share) & self.is_text_V[token_NL] & mask_NL.bool()
        random_NL = self.text_ids[(draw_3NL[2] * len(self.text_ids)).long()]
        hidden_NL = torch.where(draw_3NL[1] < 0.8, self.mask_id, random_NL)
        hidden_NL = torch.where(draw_3NL[1] < 0.9, hidden_NL, token_NL)
        label_NL = torch.where(chosen_NL, token_NL, NOT_PREDICTED)
        return torch.where(chosen_NL, hidden_NL, token_NL), label_NL
