"""The contrast between the nodes of documents and those of their code-switched views.

InfoNCE (van den Oord et al. 2018, arXiv 1807.03748) at three granularities. A node's positive is itself in
the view. The negatives of sentences and statements are all other nodes of the type in the batch.
Granularities, positives and negatives of the published method are not known beyond its name; these are ours.

Shapes: S nodes of a type, W their width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmalign.data.dictionaries.read import Dictionary
from mmalign.text.causality.config import ContrastConfig
from mmalign.text.causality.interaction import Nodes
from mmalign.text.causality.outline import target_of
from mmalign.text.robust.code_switch import CodeSwitchConfig, switch
from mmalign.text.tasks.task import Event, Example, starts_of


def contrast_loss(
    nodes: Nodes, view: Nodes, causal_P: Tensor, project: nn.ModuleDict, config: ContrastConfig
) -> Tensor:
    """The weighted sum of the contrasts, a scalar.

    Args:
        causal_P: int64, the label of each pair.
        project: by type of node, to the space of the contrast.
    """
    # The negatives of a pair have the opposite label: two causal pairs are not driven apart.
    opposite_PP = causal_P[:, None] != causal_P[None, :]
    total = nodes["pair"].new_zeros(())
    weights = {"sentence": config.sentence, "statement": config.statement, "pair": config.pair}
    for node, weight in weights.items():
        if weight > 0:
            one, other = project[node](nodes[node]), project[node](view[node])
            negative = opposite_PP if node == "pair" else None
            total = total + weight * info_nce(one, other, config.temperature, negative)
    return total


def info_nce(
    one_SW: Tensor, other_SW: Tensor, temperature: float, negative_SS: Tensor | None = None
) -> Tensor:
    """The mean over both directions of the cross-entropy of finding each row's own partner; 0 without rows.

    Args:
        negative_SS: bool, symmetric, which others are a row's negatives; None: all.
    """
    if len(one_SW) == 0:
        return one_SW.sum()  # zero, with a gradient function: `backward` needs one
    # One matrix for all scores of a type: 0.8 GB for eight documents with 60 events, all paired.
    cosine_SS = F.normalize(one_SW, dim=-1) @ F.normalize(other_SW, dim=-1).T
    logits_SS = cosine_SS / temperature
    own = torch.arange(len(one_SW), device=one_SW.device)
    if negative_SS is not None:
        compared = negative_SS | (own[:, None] == own[None, :])
        logits_SS = logits_SS.masked_fill(~compared, float("-inf"))
    return (F.cross_entropy(logits_SS, own) + F.cross_entropy(logits_SS.T, own)) / 2


def view_of(
    example: Example,
    tables: Mapping[str, Dictionary],
    config: CodeSwitchConfig,
    random: np.random.Generator,
) -> Example:
    """The same sentences, events and pairs in the same order; the words are mixed."""
    target = target_of(example)
    old = [tuple(text.split(" ")) for text in example.texts]
    new = [
        switch(replace(example, texts=words), tables, config, random, words=True).texts
        for words in old
    ]
    # Triggers are translated like any word, so the new word count is the old one but the characters move.
    events = tuple(_moved(one, old[one.sentence], new[one.sentence]) for one in target.events)
    texts = tuple(" ".join(words) for words in new)
    return replace(example, texts=texts, target=replace(target, events=events))


def _moved(event: Event, old: Sequence[str], new: Sequence[str]) -> Event:
    before, after = starts_of(old), starts_of(new)
    touched = [
        i
        for i, (start, word) in enumerate(zip(before, old, strict=True))
        if start < event.end and event.start < start + len(word)
    ]
    last = touched[-1]
    return Event(event.sentence, after[touched[0]], after[last] + len(new[last]))
