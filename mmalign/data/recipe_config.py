"""What a recipe file says, and by what two recipes are equal."""

import hashlib
import json
from typing import Any

import pydantic

from mmalign.core.config import Section, Seed
from mmalign.core.errors import UserError
from mmalign.data.names import fault_of
from mmalign.data.resize import Resize
from mmalign.data.shards.withhold import Withhold
from mmalign.data.sources.kinds import SourceConfig


class RecipeConfig(Section):
    name: str
    """Name of the data set in manifests and metrics."""
    seed: Seed = 0
    samples_per_shard: int = pydantic.Field(default=5000, ge=1)
    max_bad_fraction: float = pydantic.Field(default=0.05, ge=0, le=1)
    """Stop when a larger fraction of the rows cannot be used. Published test sets always allow none."""
    source: SourceConfig
    resize: Resize | None = None
    """Make larger images smaller; none: every image as it is."""
    withhold: Withhold | None = None
    """Withhold captions of training images and write them as the split `withheld`."""

    def for_manifest(self) -> dict[str, Any]:
        """The recipe as a manifest holds it, and its `recipe_sha256`; equal recipes need no second build.

        Raises:
            UserError: a name is not text that a manifest can hold.
        """
        # A limit on bad rows changes no byte, so recipes that differ in it alone are equal.
        recipe = self.model_dump(mode="json", exclude={"max_bad_fraction"})
        if self.resize is None:  # so that what older versions built still counts as built
            del recipe["resize"]
        for name, value in recipe.items():
            if fault := fault_of(json.dumps(value, ensure_ascii=False)):
                raise UserError(f"recipe: `{name}` holds {fault[1]}; write it in UTF-8")
        sha256 = hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()
        return {"name": self.name, "recipe": recipe, "recipe_sha256": sha256}
