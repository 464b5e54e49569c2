"""The settings of a lexical injection: words, layer, loss, training; our protocol or the published one."""

from typing import Annotated, Any, Literal

import pydantic

from mmalign.core.config import Section, Seeds
from mmalign.evaluation.lexicon import LexiconConfig
from mmalign.models.hidden_states import WordPooling
from mmalign.models.lora import LoraConfig
from mmalign.text.lexical.losses import InfoNceConfig, LossConfig

# The settings of the code of arXiv 2506.15415 (StanNgugi/tli_project@e158b76).
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


class LexicalInjectionConfig(Section):
    """One lexical injection. The measurement before and after leaves special tokens out in any case."""

    lexicon: LexiconConfig
    protocol: Literal["ours", "published"] = "ours"
    """published: the fields from `pooling` to `warmup_steps` are those of the paper's code, whatever the
    file says; known flaws included."""
    pooling: WordPooling = "content"
    """Of the words when the layer is chosen and in the loss; `all` includes special tokens."""
    layer: Annotated[int, pydantic.Field(ge=1)] | Literal["best", "last"] = "best"
    """Whose states the loss sees: those after so many blocks, after the last one, or at the best layer of the
    probe before, by its trained words. Below layer 0, the embeddings, there is nothing to adapt."""
    best_by: Literal["similarity_gain", "similarity"] = "similarity_gain"
    """What `best` means. similarity: as published, with no random pairs and without the last layer (unless
    there is no other)."""
    loss: LossConfig = InfoNceConfig(kind="infonce")
    lora: LoraConfig = LoraConfig()
    adapters: Literal["up_to_layer", "all"] = "up_to_layer"
    """In the blocks up to the layer, or in all, of which those above the layer get no gradient."""
    epochs: int = pydantic.Field(default=10, ge=0)
    """0: nothing is trained; the unchanged model, at the same layer."""
    batch_size: int = pydantic.Field(default=64, ge=2)
    lr: float = pydantic.Field(default=1e-3, gt=0)
    """Peak learning rate of the adapters; it falls linearly to zero."""
    weight_decay: float = pydantic.Field(default=0.01, ge=0)
    warmup_steps: int = pydantic.Field(default=50, ge=0)
    seeds: Seeds = (0,)
    """Inject once for each: start of the adapters, order of the words, dropout. The split is the same."""

    @pydantic.model_validator(mode="before")
    @classmethod
    def _as_published(cls, tree: Any) -> Any:
        is_published = isinstance(tree, dict) and tree.get("protocol") == "published"
        return {**tree, **PUBLISHED} if is_published else tree
