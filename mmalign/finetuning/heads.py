"""What stands on top of the text tower when it is fine-tuned.

    texts -> encoder -> text_ND, unit length -> ClassificationHead -> logits_NK

Shapes: N texts, D the width of the shared space, K labels. The head sees the shared space and
nothing else, for it is there, and not in the tower's own features, that images have aligned the
languages.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from mmalign.commit import write_atomic, write_json
from mmalign.config import write_yaml
from mmalign.evaluation.encoder import Encoder

TEXT_SIDE = ("text_tower.", "text_projection.")
"""Beginnings of the names of a dual encoder's tensors that make text embeddings."""


class ClassificationHead(nn.Module):
    """A classifier of embeddings, which it first moves to the origin and scales to size 1.

    Either linear, or with one hidden layer (`hidden` ReLU units), for labels that are no straight cut
    through the space: the categories of 200 emoji, whose names fill about 19 of its dimensions.

    Unit-length embeddings of a tower share most of their length (measured on an untrained one:
    their mean has length 0.99), and what differs between texts is a hundred times smaller than a
    linear layer likes: it would hardly learn, on an untrained tower least of all, and flatter the
    trained one. One shift and one factor, fixed from the training texts before the first step, put
    that right and leave angles and distances between texts as the images have made them, which a
    factor per entry would not.

    The output layer starts at zero: a linear classifier needs no random start, and so has no lucky one.
    The hidden layer starts as He et al. 2015 (arXiv 1502.01852) have it, with biases of the same size as
    its sums, so that its units bend at different places.

    Attributes:
        centre_D: the mean training embedding.
        scale_1: the factor; entries of the centred training embeddings come to a mean square of 1.
    """

    centre_D: Tensor
    scale_1: Tensor

    def __init__(self, embedding: int, num_labels: int, hidden: int | None = None) -> None:
        super().__init__()
        self.hidden = nn.Linear(embedding, hidden) if hidden else None
        self.output = nn.Linear(hidden or embedding, num_labels)
        nn.init.zeros_(self.output.weight)
        nn.init.zeros_(self.output.bias)
        if self.hidden is not None:
            nn.init.kaiming_normal_(self.hidden.weight, nonlinearity="relu")
            nn.init.normal_(self.hidden.bias, std=2**0.5)
        self.register_buffer("centre_D", torch.zeros(embedding))
        self.register_buffer("scale_1", torch.ones(1))

    @torch.no_grad()
    def fit_scale(self, text_ND: Tensor) -> None:
        """Take shift and factor from the training embeddings."""
        self.centre_D.copy_(text_ND.mean(0))
        spread = (text_ND - self.centre_D).square().mean().sqrt()
        self.scale_1.copy_(1 / spread.clamp(min=1e-6))

    def forward(self, text_ND: Tensor) -> Tensor:
        """(N, D) of unit length -> (N, K) logits."""
        feature = (text_ND - self.centre_D) * self.scale_1
        if self.hidden is not None:
            feature = torch.relu(self.hidden(feature))
        logits_NK: Tensor = self.output(feature)
        return logits_NK

    @torch.no_grad()
    def folded(self) -> dict[str, Tensor]:
        """The layers on plain unit-length embeddings that do the same.

        `weight` (K, H or D) and `bias` (K) of the output, and with a hidden layer `hidden.weight` (H, D) and
        `hidden.bias` (H): logits = weight @ relu(hidden.weight @ embedding + hidden.bias) + bias.
        """
        first = self.output if self.hidden is None else self.hidden
        weight = first.weight * self.scale_1
        layer = {"weight": weight, "bias": first.bias - weight @ self.centre_D}
        if self.hidden is None:
            return layer
        output = {"weight": self.output.weight, "bias": self.output.bias}
        return {**output, **{f"hidden.{name}": tensor for name, tensor in layer.items()}}


@dataclass
class TextClassifier:
    """An encoder, the head on its text embeddings, and the labels that the classes stand for."""

    encoder: Encoder
    head: ClassificationHead
    labels: tuple[str, ...]

    def embed(self, texts: Sequence[str]) -> Tensor:
        """(N, D) of unit length, without gradients, whatever mode the tower was left in."""
        self.encoder.model.text_tower.eval()
        return torch.from_numpy(self.encoder.encode_texts(texts)).to(self.encoder.device)

    def logits(self, texts: Sequence[str]) -> Tensor:
        """(N, K) with gradients through head and tower, in the mode they are in."""
        encoder = self.encoder
        token_NL, mask_NL = encoder.tokenizer(texts, encoder.config.text.max_length)
        text_ND = encoder.model.encode_text(token_NL.to(encoder.device), mask_NL.to(encoder.device))
        logits_NK: Tensor = self.head(text_ND)
        return logits_NK

    @torch.no_grad()
    def predict(self, texts: Sequence[str]) -> np.ndarray:
        """(N,) int64, the class of each text."""
        classes: np.ndarray = self.head(self.embed(texts)).argmax(1).cpu().numpy()
        return classes

    def write(self, folder: Path) -> None:
        """Write all that classifying texts needs: weights, tokenizer, labels, configuration.

        model.safetensors holds the text side under its names in the dual encoder; head.safetensors
        holds the layers on its unit-length embeddings (`ClassificationHead.folded`).
        """
        state = self.encoder.model.state_dict()
        text_side = {name: one for name, one in state.items() if name.startswith(TEXT_SIDE)}
        save_file(_own_memory(text_side), folder / "model.safetensors")
        save_file(_own_memory(self.head.folded()), folder / "head.safetensors")
        self.encoder.tokenizer.save(folder / "tokenizer")
        write_json(folder / "labels.json", list(self.labels))
        config = {"model": self.encoder.config.model_dump(mode="json")}
        write_atomic(folder / "config.yaml", write_yaml(config))


def _own_memory(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies on the host: safetensors refuses tensors that share memory, as tied embeddings do."""
    return {name: one.detach().cpu().clone().contiguous() for name, one in tensors.items()}
