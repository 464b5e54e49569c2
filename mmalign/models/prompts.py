"""Words that are put before every text, for models that were trained with them.

E5 (arXiv 2212.03533) was trained on `query: ...` and `passage: ...`; its vectors of bare texts are worse.

    config_sentence_transformers.json, or --prompt-query and --prompt-passage -> Prompts -> before each text
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Side = Literal["query", "passage"]


@dataclass(frozen=True)
class Prompts:
    """What stands before a text that asks, and before one that is searched. All texts of other tasks ask."""

    query: str = ""
    passage: str = ""

    def add(self, texts: Sequence[str], side: Side | None) -> list[str]:
        """The texts with the prompt of a side; None: as they are."""
        prompt: str = getattr(self, side) if side else ""
        return [prompt + text for text in texts]

    def changed(self, given: Mapping[Side, str]) -> "Prompts":
        """The same with the sides that were given."""
        return Prompts(given.get("query", self.query), given.get("passage", self.passage))

    @property
    def words(self) -> str:
        """For the protocol; empty without prompts."""
        if not (self.query or self.passage):
            return ""
        return f" Prompts: `{self.query}` before texts, `{self.passage}` before passages."

    @property
    def facts(self) -> dict[str, Any]:
        """For `facts` of a model; empty without prompts."""
        return {"prompts": vars(self)} if self.query or self.passage else {}


NO_PROMPTS = Prompts()
