"""The rows of a text tower's embedding for another vocabulary than that which the weights came with.

rows of the old tokenizer's tokens -> the same piece: the same row
                                      a new piece: the mean of the rows of its old pieces
                                      nothing of it was known: drawn like the old rows
"""

import zlib
from typing import Any

import torch
from torch import Tensor

from mmalign.core.console import say
from mmalign.core.errors import UserError
from mmalign.data.tokenizer import Tokenizer, load_tokenizer
from mmalign.data.vocabulary import old_pieces
from mmalign.models.text_tower import TextTowerConfig, find_file, positions_of


def tokenizer_of(config: TextTowerConfig, tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer that the tower's weights came with; the run's own where they came without one."""
    name = config.pretrained
    theirs = load_tokenizer(name) if name and find_file(name, "tokenizer_config.json") else None
    return tokenizer if theirs is None or same_ids(theirs, tokenizer) else theirs


def same_ids(one: Tokenizer, other: Tokenizer) -> bool:
    """Whether both give every piece the same id."""
    vocabularies = (t.inner.get_vocab() for t in (one, other))
    return one.padding_id == other.padding_id and next(vocabularies) == next(vocabularies)


@torch.no_grad()
def adapt_vocabulary(trunk: Any, old: Tokenizer, tokenizer: Tokenizer) -> dict[str, int] | None:
    """Give a trunk of transformers, whose rows are those of `old`, the rows of `tokenizer`, in place.

    Returns:
        For the lineage: how many pieces were `kept`, are `new` and were `dropped`; None: both are the same.

    Raises:
        UserError: the trunk counts positions from its padding token, which has another id.
    """
    if same_ids(old, tokenizer):
        return None
    check_padding(trunk, trunk.config.pad_token_id, tokenizer)
    table = trunk.get_input_embeddings()
    rows_VF, facts = adapted_rows(table.weight, old, tokenizer)
    trains = table.weight.requires_grad
    trunk.resize_token_embeddings(len(rows_VF), mean_resizing=False)
    trunk.config.pad_token_id = tokenizer.padding_id
    table = trunk.get_input_embeddings()
    if table.padding_idx is not None:
        table.padding_idx = tokenizer.padding_id
    table.weight.copy_(rows_VF).requires_grad_(trains)
    return facts


def check_padding(trunk: Any, padding_id: int, tokenizer: Tokenizer) -> None:
    """Refuse another padding id than that which the weights were trained with (UserError).

    Of a trunk whose positions begin behind it (RoBERTa and its variants); others do not depend on it.
    """
    positions = getattr(trunk.config, "max_position_embeddings", None)
    if tokenizer.padding_id != padding_id and positions_of(trunk) not in (None, positions):
        raise UserError(
            f"tokenizer: pads with id {tokenizer.padding_id}, but this text tower counts positions from its "
            f"own padding id, {padding_id}; take its own tokenizer, with `keep` and `grow`"
        )


def adapted_rows(
    row_VF: Tensor, old: Tokenizer, tokenizer: Tokenizer
) -> tuple[Tensor, dict[str, int]]:
    """(V, F) rows of the old tokenizer's tokens -> one row per token, and counts as `adapt_vocabulary`."""
    pieces = old_pieces(tokenizer, old)
    mean_F, std_F = row_VF.mean(0), row_VF.std(0)
    names = tokenizer.inner.convert_ids_to_tokens(range(len(pieces)))
    rows = [
        row_VF[ids].mean(0) if ids else mean_F + std_F * _noise(name, row_VF)
        for name, ids in zip(names, pieces, strict=True)
    ]
    kept = len(set(names) & old.inner.get_vocab().keys())
    facts = {"kept": kept, "new": len(rows) - kept, "dropped": old.vocabulary - kept}
    unknown = sum(not ids for ids in pieces)
    say(
        f"vocabulary: {kept} pieces keep their rows, {facts['new']} are new ({unknown} of them of unknown "
        f"characters), {facts['dropped']} are dropped"
    )
    return torch.stack(rows), facts


def _noise(piece: str, like_VF: Tensor) -> Tensor:
    # From the piece alone: the same on every rank, and no draw of the run's generator.
    generator = torch.Generator().manual_seed(zlib.crc32(piece.encode()))
    return torch.randn(like_VF.shape[1], generator=generator).to(like_VF)
