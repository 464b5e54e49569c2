"""What is exported: a text tower, both towers where there are two, and all facts about them.

run, checkpoint         -> Encoder -> its text side -+
tower of a fine-tuning  ---------------------------- +-> TextEncoder -> Source -> the writers of formats
adapters (LoRA)         -> merged into their base   -+       with results, configuration, lineage
"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmalign.core.commit import verify
from mmalign.core.config import read_yaml
from mmalign.core.console import say
from mmalign.core.errors import UserError
from mmalign.export.lineage import config_of_finetuning, lineage, without_paths
from mmalign.models import adapters
from mmalign.models.encoder import Encoder, load_encoder, run_of
from mmalign.models.load import load_text_encoder
from mmalign.models.text_encoder import TextEncoder, is_contrastive, saved_text_encoder, text_side
from mmalign.results.collect import measured_on, merged, result_files
from mmalign.results.results import Results, read_results


@dataclass(frozen=True)
class Source:
    """A trained model that is exported.

    Attributes:
        tower: the text side, in evaluation mode; of a contrastive run with the projection into the shared
            space.
        encoder: both towers; None: a text tower alone (fine-tuned, merged, or a masked language model).
        results: what was measured on these weights; None: nothing was.
        config: the resolved configuration of the run or of the fine-tuning.
        lineage: what `lineage.json` holds (see `lineage.py`).
    """

    tower: TextEncoder
    encoder: Encoder | None = None
    results: Results | None = None
    config: dict[str, Any] = field(default_factory=dict)
    lineage: dict[str, Any] = field(default_factory=dict)

    def both_towers(self, format_name: str) -> Encoder:
        """The dual encoder, for a format that holds one.

        Raises:
            UserError: this is a text tower alone.
        """
        if self.encoder is None:
            raise UserError(
                f"--format {format_name}: holds an image tower and a text tower, and this is a text tower "
                "alone; export it to sentence-transformers or onnx"
            )
        return self.encoder


def read_source(path: str | Path) -> Source:
    """The trained model in a folder, with what was measured on it and where it comes from.

    Args:
        path: a run (its newest checkpoint), one of its checkpoints, a fine-tuning (`RUN/finetune/NAME`) or
            its tower, or a folder with a LoRA adapter of peft, which is merged into its base.

    Raises:
        UserError: it is none of these, or it is damaged.
    """
    folder = Path(path)
    if (folder / adapters.CONFIG).is_file():
        tower = load_text_encoder(str(folder))
        config = adapters.settings_of(folder)
        return Source(tower, config=config, lineage=lineage(folder, tower.facts))
    saved = saved_text_encoder(folder)
    if saved is not None:
        return _of_finetuning(saved)
    run = run_of(folder)
    config = dict(read_yaml(run / "config.yaml")) if (run / "config.yaml").is_file() else {}
    if "model" not in config:
        raise UserError(
            f"{path}: nothing that can be exported: it is not a run (config.yaml), a checkpoint of one, a "
            "finished fine-tuning (tower/tower.json) or a LoRA adapter (adapter_config.json)"
        )
    encoder, contrastive = load_encoder(folder), is_contrastive(folder)
    found = measured_on(run, encoder.facts["sha256"])
    if not found and result_files(run):
        say(f"{run}: everything measured there was measured on other weights, and is left out")
    return Source(
        # A masked language model has a projection and an image tower that were never trained.
        tower=text_side(encoder, contrastive),
        encoder=encoder if contrastive else None,
        results=without_paths(merged(found)) if found else None,
        config=config,
        lineage=lineage(folder, encoder.facts),
    )


def _of_finetuning(folder: Path) -> Source:
    verify(folder)
    tower = load_text_encoder(str(folder))
    file, results = folder.parent / "results.json", None
    if file.is_file():
        results = without_paths(read_results(file))
        # They name the model that was fine-tuned; what was measured is the tower.
        model = {**results.model, "fine_tuned_from": results.model["sha256"]}
        results = replace(results, model={**model, "sha256": tower.facts["sha256"]})
    facts = lineage(folder, tower.facts)
    return Source(tower, None, results, config_of_finetuning(folder), facts)
