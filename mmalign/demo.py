"""The demo: every verb once, on embedded data, from pictures to a published encoder and its report.

    recipe -> shards -> run -> suite (beside the untrained model) -> fine-tuning -> export -> report

Each stage is the verb that a person would type, with the YAML files of the checkout; stages that were done
before are not done again where the verb itself knows it (data, training).
"""

import time
from pathlib import Path

from mmalign.core import console
from mmalign.core.console import run_verb
from mmalign.core.errors import UserError
from mmalign.core.record import note_command
from mmalign.results.results import Results, read_results

RECIPE = Path("data_recipes/emoji_scenes.yaml")
RUN = Path("train/emoji_scenes.yaml")
SUITE = Path("eval/emoji_scenes.yaml")
TASKS = (
    Path("train/finetune/emoji_category.yaml"),
    Path("train/finetune/emoji_entailment.yaml"),
)
FORMATS = ("sentence-transformers", "open_clip", "onnx")
TEST_DATA = ("--data", "data/emoji_scenes/test")


def run_demo(out: Path) -> None:
    """Run all stages into `out` and show a table of what came out.

    Raises:
        UserError: not started in a checkout of mmalign.
    """
    for path in (RECIPE, RUN, SUITE, *TASKS):
        if not path.is_file():
            raise UserError(
                f"{path}: no such file; run the demo in the folder of the mmalign checkout"
            )
    started = time.monotonic()
    build = ["data", "build", str(RECIPE)]
    run_verb(build)
    note_command(out, build)  # the other verbs know the run and note themselves
    for arguments in (
        ["train", str(RUN), "--out", str(out)],
        ["eval", str(SUITE), "--model", str(out), "--untrained"],
        *(["finetune", str(task), "--model", str(out)] for task in TASKS),
        ["export", str(out), *(w for name in FORMATS for w in ("--format", name)), *TEST_DATA],
        ["report", str(out)],
    ):
        run_verb(arguments)
    minutes = (time.monotonic() - started) / 60
    _show(read_results(out / "results.json"))
    console.say(f"{minutes:.1f} minutes in all")
    console.say(f"report: {out / 'report.html'}")
    console.say(f"the model, for {', '.join(FORMATS)}: {out / 'export'}")


def _show(results: Results) -> None:
    """Print the means beside the untrained model and chance."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table(title="mmalign demo: means over the languages", box=box.SIMPLE_HEAD)
    for heading in ("measure", "value", "worst language", "untrained", "chance", "n"):
        table.add_column(heading, justify="left" if heading == "measure" else "right")
    untrained = results.baselines["untrained"].metrics
    for name, value in sorted(results.metrics.items()):
        # What has no chance level (drops, other scores of the same answers) is in the report.
        if "/mean/" not in name or name not in results.chance or name.endswith(("@5", "@10")):
            continue
        table.add_row(
            " ".join(part for part in name.split("/")[1:] if part != "mean"),
            f"{value:.3f}",
            _worst(results, name),
            f"{untrained[name]:.3f}" if name in untrained else "",
            f"{results.chance[name]:.3f}",
            f"{results.counts[name]:,}",
        )
    Console().print(table)


def _worst(results: Results, mean_name: str) -> str:
    before, after = mean_name.split("/mean/")
    parts = {
        name.removeprefix(f"{before}/").removesuffix(f"/{after}"): value
        for name, value in results.metrics.items()
        if name.startswith(f"{before}/") and name.endswith(f"/{after}")
    }
    parts = {part: value for part, value in parts.items() if part not in ("mean", "all")}
    if not parts:  # a mean of other means
        return ""
    worst = min(parts, key=lambda part: parts[part])
    return f"{parts[worst]:.3f} ({worst})"
