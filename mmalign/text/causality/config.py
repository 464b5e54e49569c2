"""The settings of the graph and of the contrast; both can be switched off.

The method's published form is known by its abstract alone (He et al., LREC-COLING 2024, arXiv 2403.02893):
its layers, widths, temperature and weights were never published, so every default here is ours.
"""

from typing import Self

from pydantic import Field, model_validator

from mmalign.core.config import Section
from mmalign.text.robust.code_switch import CodeSwitchConfig

# What the numbers of event causality measure, for the protocol.
ASKED = (
    " A pair has no direction; asked are the pairs that the files list. A document longer than the tower's "
    "sequences is read in windows that overlap, nothing is cut. Intervals of one seed redraw documents."
)


class ContrastConfig(Section):
    """Pulls the nodes of a document towards those of its code-switched view."""

    view: CodeSwitchConfig
    """How words of the view are replaced; `sentence_ratio` is the probability of each sentence."""
    temperature: float = Field(default=0.1, gt=0)
    """Cosines are divided by it."""
    sentence: float = Field(default=0.1, ge=0)
    """Weight of the contrast of sentence nodes, beside the loss on the labels."""
    statement: float = Field(default=0.1, ge=0)
    """Weight of the contrast of statement nodes."""
    pair: float = Field(default=0.1, ge=0)
    """Weight of the contrast of pair nodes."""


class CausalityConfig(Section):
    """How event pairs are judged."""

    graph: bool = True
    """Whether nodes exchange messages; else a pair is judged by the states of its own words alone."""
    contrast: ContrastConfig | None = None
    """None: the labels alone train."""
    width: int = Field(default=128, ge=1)
    """Of a node's state."""
    layers: int = Field(default=2, ge=2)
    """Of the graph network; with fewer than two, edges into phrases and sentences would affect no pair."""
    heads: int = Field(default=4, ge=1)
    """Attention heads of a layer; they divide `width`."""
    dropout: float = Field(default=0.1, ge=0, lt=1)
    """Of messages and in the classifier."""
    causal_weight: float = Field(default=2.0, gt=0)
    """Weight of a causal pair in the loss; about one pair in ten is causal."""

    @model_validator(mode="after")
    def _heads_divide_the_width(self) -> Self:
        if self.width % self.heads:
            raise ValueError(f"`heads` ({self.heads}) must divide `width` ({self.width})")
        return self


def describe(config: CausalityConfig) -> str:
    """The head in words, for the protocol."""
    graph = (
        f"a graph of phrases, sentences, statements and event pairs ({config.layers} layers of width "
        f"{config.width})"
        if config.graph
        else f"event pairs without a graph (width {config.width})"
    )
    if config.contrast is None:
        return f"{graph}, no contrast, causal pairs counting {config.causal_weight:g}"
    c = config.contrast
    into = ", ".join(c.view.languages) if c.view.languages else "all languages of the dictionaries"
    return (
        f"{graph}, contrast with a view code-switched into {into} (sentences {c.view.sentence_ratio:g}, "
        f"words {c.view.token_ratio:g}; weights sentence {c.sentence:g}, statement {c.statement:g}, pair "
        f"{c.pair:g}; temperature {c.temperature:g}), causal pairs counting {config.causal_weight:g}"
    )
