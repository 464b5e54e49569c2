"""A head that says which pairs of events in a document are causal.

    document -> outline -> overlapping windows of its text -> states -> nodes of a graph -> logits of pairs
             -> code-switched view -> the same -> nodes -> contrast with the document's (training only)

A document that is too long for the tower is read in windows that share a quarter of their tokens: nothing is
cut, and a token that two windows share counts with both states.

Shapes: B documents, N windows, L tokens, F width of a state, P pairs of all documents.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from mmalign.data.dictionaries.read import Dictionary
from mmalign.models.text_encoder import TextEncoder
from mmalign.text.causality.config import CausalityConfig
from mmalign.text.causality.contrast import contrast_loss, view_of
from mmalign.text.causality.graph import Graph, build_graph
from mmalign.text.causality.interaction import CausalityHead
from mmalign.text.causality.outline import outline
from mmalign.text.heads.base import TaskBatch, TaskModel, check_alignable, mean_per_owner
from mmalign.text.robust import code_switch
from mmalign.text.scores import Prediction
from mmalign.text.tasks.task import Example


@dataclass(frozen=True)
class CausalityBatch(TaskBatch):
    """Documents with their graph; `target` is (P,) int64, 1 where a pair is causal."""

    graph: Graph


class CausalityModel(TaskModel):
    """A bool for each pair that a document asks about."""

    evaluation_batch = 32
    head: CausalityHead

    def __init__(self, tower: TextEncoder, config: CausalityConfig) -> None:
        check_alignable(tower)
        super().__init__(tower, CausalityHead(tower.state_width, config))
        self.config = config
        # Of the views, by language of a document, then by language to switch to; from `prepare`.
        self.tables: dict[str, Mapping[str, Dictionary]] = {}
        # Windows share a quarter of their tokens, and must advance by one at least.
        room = tower.max_length - tower.tokenizer.inner.num_special_tokens_to_add(False)
        self.stride = min(tower.max_length // 4, max(0, room - 1))

    def prepare(self, train: Sequence[Example]) -> None:
        """Read the dictionaries of the views."""
        if self.config.contrast is not None:
            self.tables = code_switch.tables_of(self.config.contrast.view, train)

    def collate(self, examples: Sequence[Example]) -> CausalityBatch:
        outlines = [outline(one) for one in examples]
        tokens = self.tower.tokenize(
            [one.text for one in outlines], stride=self.stride, return_overflowing_tokens=True
        )
        device = self.tower.device
        causal = [is_causal for one in outlines for is_causal in one.causal]
        return CausalityBatch(
            examples,
            tokens,
            tokens.encoding["overflow_to_sample_mapping"].to(device),
            torch.tensor(causal, dtype=torch.long, device=device),
            build_graph(outlines, tokens.encoding, device),
        )

    def logits(self, state_NLF: Tensor, batch: TaskBatch) -> Tensor:
        """(P, 2): not causal, causal."""
        graph = _graph_of(batch)
        return self.head.logits(self.head.nodes(state_NLF, graph), graph)

    def losses(self, logits: Tensor, batch: TaskBatch) -> Tensor:
        """(B,), the weighted mean over a document's pairs; 0 without pairs."""
        weight = logits.new_tensor([1.0, self.config.causal_weight])
        loss_P = F.cross_entropy(logits, batch.target, weight, reduction="none")
        return mean_per_owner(loss_P, _graph_of(batch).document_P, len(batch.examples))

    def loss_with_view(self, batch: TaskBatch, random: np.random.Generator) -> Tensor:
        """The mean loss of the batch and its contrast with views that are drawn now, a scalar."""
        contrast = self.config.contrast
        assert contrast is not None
        drawn = [
            view_of(one, self.tables[one.lang], contrast.view, random) for one in batch.examples
        ]
        views, graph = self.collate(drawn), _graph_of(batch)
        nodes = self.head.nodes(self.tower.states(batch.tokens), graph)
        of_views = self.head.nodes(self.tower.states(views.tokens), views.graph)
        # Labels are compared on the documents alone, so that the contrast is all that it adds to a run.
        loss = self.losses(self.head.logits(nodes, graph), batch).mean()
        into_contrast = self.head.into_contrast
        return loss + contrast_loss(nodes, of_views, batch.target, into_contrast, contrast)

    def decode(self, logits: Tensor, batch: TaskBatch) -> list[Prediction]:
        found: list[list[bool]] = [[] for _ in batch.examples]
        causal_P = (logits[:, 1] > logits[:, 0]).tolist()
        for document, causal in zip(_graph_of(batch).document_P.tolist(), causal_P, strict=True):
            found[document].append(causal)
        return [tuple(one) for one in found]

    def description(self) -> dict[str, Any]:
        return {"causality": self.config.model_dump(mode="json")}


def _graph_of(batch: TaskBatch) -> Graph:
    assert isinstance(batch, CausalityBatch)
    return batch.graph
