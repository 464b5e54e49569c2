"""What a lexical injection is: which words, at which layer, by which loss; our protocol or the published."""

from typing import Annotated, Any, Literal

import pydantic

from mmalign.core.config import Section, Seeds
from mmalign.evaluation.lexicon import LexiconConfig
from mmalign.models.hidden_states import WordPooling
from mmalign.text.lexical.losses import InfoNceConfig, LossConfig
from mmalign.text.lora import LoraConfig

PUBLISHED: dict[str, Any] = {
    "pooling": "all",
    "layer": "best",
    "best_by": "similarity",
    "loss": {"kind": "hinge", "margin": 0.4},
    "lora": {"rank": 16, "alpha": 32.0, "dropout": 0.05, "targets": "query_value"},
    "adapters": "all",
    "epochs": 5,
    "batch_size": 8,
    "lr": 2e-4,
    "weight_decay": 0.01,
    "warmup_steps": 50,
}
"""The settings of the code of arXiv 2506.15415 (StanNgugi/tli_project@e158b76)."""


class LexicalInjectionConfig(Section):
    """One lexical injection. The measurement before and after leaves special tokens out in any case."""

    lexicon: LexiconConfig
    protocol: Literal["ours", "published"] = "ours"
    """published: the fields from `pooling` to `warmup_steps` are those of the paper's code, whatever the
    file says; known flaws included."""
    pooling: WordPooling = "content"
    """Of the words when the layer is chosen and in the loss; `all` includes special tokens."""
    layer: Annotated[int, pydantic.Field(ge=1)] | Literal["best", "last"] = "best"
    """Where the loss is: after so many blocks, after the last one, or at the best layer of the probe before,
    by its trained words. Layer 0, the embeddings, has nothing below it that adapters could change."""
    best_by: Literal["similarity_gain", "similarity"] = "similarity_gain"
    """What `best` means. similarity: as published, with no random pairs and without the last layer (unless
    there is no other)."""
    loss: LossConfig = InfoNceConfig(kind="infonce")
    lora: LoraConfig = LoraConfig()
    adapters: Literal["up_to_layer", "all"] = "up_to_layer"
    """In the blocks up to the layer, or in all, of which those above the layer get no gradient."""
    epochs: int = pydantic.Field(default=10, ge=0)
    """0: nothing is trained; the model as it is, at the same layer."""
    batch_size: int = pydantic.Field(default=64, ge=2)
    lr: float = pydantic.Field(default=1e-3, gt=0)
    """Peak learning rate of the adapters; it falls linearly to zero."""
    weight_decay: float = pydantic.Field(default=0.01, ge=0)
    warmup_steps: int = pydantic.Field(default=50, ge=0)
    seeds: Seeds = (0,)
    """Inject once for each: start of the adapters, order of the words, dropout. The split stays."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _as_published(cls, tree: Any) -> Any:
        is_published = isinstance(tree, dict) and tree.get("protocol") == "published"
        return {**tree, **PUBLISHED} if is_published else tree
