"""What is exported: a text tower, both towers where there are two, and all that is known about them.

run, checkpoint         -> Encoder -> its text side -+
tower of a fine-tuning  ----------------------------> Tower -+-> Source -> the writers of formats
adapters (LoRA)         -> merged into their base   -+       results, configuration, lineage
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
    """A trained model on its way out.

    Attributes:
        tower: the text side, in evaluation mode; of a contrastive run with the projection into the shared
            space.
        encoder: both towers; None: a text tower alone (fine-tuned, merged, or a masked language model).
        results: what was measured on these weights; None: nothing.
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
        return _of_adapter(folder)
    tower = saved_text_encoder(folder)
    if tower is not None:
        return _of_finetuning(tower)
    config = run_of(folder) / "config.yaml"
    if config.is_file() and "model" in read_yaml(config):
        return _of_run(folder)
    raise UserError(
        f"{path}: nothing that can be exported: it is no run (config.yaml), no checkpoint of one, no "
        "finished fine-tuning (tower/tower.json) and no LoRA adapter (adapter_config.json)"
    )


def _of_run(path: Path) -> Source:
    """Both towers; of a masked language model the text tower alone, without its untrained projection."""
    encoder, contrastive = load_encoder(path), is_contrastive(path)
    return Source(
        tower=text_side(encoder, contrastive),
        encoder=encoder if contrastive else None,
        results=_results_of_run(run_of(path), encoder.facts["sha256"]),
        config=dict(read_yaml(run_of(path) / "config.yaml")),
        lineage=lineage(path, encoder.facts),
    )


def _results_of_run(run: Path, sha256: str) -> Results | None:
    """What was measured on these weights; never what was measured on others."""
    found = measured_on(run, sha256)
    if not found:
        if result_files(run):
            say(
                f"{run}: all that was measured there was measured on other weights, and is left out"
            )
        return None
    return without_paths(merged(found))


def _of_finetuning(folder: Path) -> Source:
    """The tower of a fine-tuning. Its results name the model that it came from; here they name the tower."""
    verify(folder)
    tower = load_text_encoder(str(folder))
    file, results = folder.parent / "results.json", None
    if file.is_file():
        results = without_paths(read_results(file))
        model = {**results.model, "fine_tuned_from": results.model["sha256"]}
        results = replace(results, model={**model, "sha256": tower.facts["sha256"]})
    return Source(
        tower=tower,
        results=results,
        config=config_of_finetuning(folder),
        lineage=lineage(folder, tower.facts),
    )


def _of_adapter(folder: Path) -> Source:
    tower = load_text_encoder(str(folder))
    return Source(
        tower=tower,
        config=adapters.settings_of(folder),
        lineage=lineage(folder, tower.facts),
    )
