"""The training of a lexical injection: adapters below one layer, a contrastive loss on that layer's states.

Anchors are the foreign words, positives the English ones.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmalign.core import console
from mmalign.core.errors import Diverged
from mmalign.evaluation.lexicon import Entry, Lexicon
from mmalign.models.hidden_states import word_states
from mmalign.models.text_encoder import TextEncoder
from mmalign.text.fit_loop import shuffled_batches
from mmalign.text.lexical.config import LexicalInjectionConfig
from mmalign.text.lora import add_lora, merge_lora


def train(
    tower: TextEncoder, lexicon: Lexicon, layer: int, config: LexicalInjectionConfig, seed: int
) -> dict[str, Any]:
    """Train adapters on the tower, in place, and merge them into its weights.

    Args:
        layer: whose states the loss sees; 1 is the output of the first block.

    Returns:
        `steps` and `train_loss`, the mean of the last epoch.

    Raises:
        UserError: training diverges, or the adapters do not fit the model.
    """
    torch.manual_seed(seed)
    # Held-out words never train, but their translations are right answers too, never negatives.
    entries = [one for each in lexicon.lists.values() for one in each.trained]
    translations = {one for each in lexicon.lists.values() for one in each.entries}
    steps_an_epoch = -(-len(entries) // config.batch_size)
    steps = config.epochs * steps_an_epoch
    add_lora(tower, config.lora, layer if config.adapters == "up_to_layer" else None)
    optimizer = torch.optim.AdamW(
        [one for one in tower.parameters() if one.requires_grad],
        config.lr,
        weight_decay=config.weight_decay,
    )
    warm = min(config.warmup_steps, steps // 2)  # the published 50 are more than a small run has

    def factor(step: int) -> float:
        return (step + 1) / (warm + 1) if step < warm else (steps - step) / max(1, steps - warm)

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, factor)
    tower.train()
    losses: list[float] = []
    batches = shuffled_batches(len(entries), config.batch_size, config.epochs, seed)
    for rows in console.track(batches, f"{lexicon.name}, layer {layer}", steps):
        batch = [entries[row] for row in rows]
        # Both sides of the batch in one forward pass.
        words = [foreign for _, foreign in batch] + [english for english, _ in batch]
        anchor_BF, positive_BF = word_states(tower, words, config.pooling)[str(layer)].chunk(2)
        answers_BB = right_answers(batch, translations).to(anchor_BF.device)
        loss = config.loss.loss(anchor_BF, positive_BF, answers_BB)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
        if not np.isfinite(losses[-1]):
            raise Diverged(f"the loss is {losses[-1]} at step {len(losses)}; lower `lr`")
    merge_lora(tower)
    tower.eval()
    return {"steps": len(losses), "train_loss": float(np.mean(losses[-steps_an_epoch:]))}


def right_answers(batch: Sequence[Entry], translations: set[Entry]) -> Tensor:
    """(B, B) bool, whether English word j is a right answer to foreign word i, whichever entry says so."""
    rows = [
        [
            english in (own, foreign) or other == foreign or (english, foreign) in translations
            for english, other in batch
        ]
        for own, foreign in batch
    ]
    return torch.tensor(rows)
