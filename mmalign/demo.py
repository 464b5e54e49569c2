"""The demo: every verb once, on embedded data, from images to a published encoder and its report.

    recipe -> shards -> run -> suite (beside the untrained model) -> fine-tuning -> export -> report

Each stage is the verb that a person would type, with YAML files that come with mmalign, so it works in an
empty folder. Data and training that are there already are not made again: their verbs know it.
"""

import time
from pathlib import Path

from mmalign.core import console
from mmalign.core.commit import check_writable
from mmalign.core.console import run_verb
from mmalign.core.record import note_command
from mmalign.results.metric_names import MetricName
from mmalign.results.results import Results, read_results

TASKS = ("emoji_category", "emoji_entailment")
FORMATS = ("sentence-transformers", "open_clip", "onnx")
TEST_DATA = "data/emoji_scenes/test"

# What the table shows and in which words. The report has all metrics.
_ROWS = {
    "text to image, recall@1": "retrieval/emoji_scenes/mean/text_to_image/recall@1",
    "image to text, recall@1": "retrieval/emoji_scenes/mean/image_to_text/recall@1",
    "names in a sentence, recall@1": "retrieval/emoji_sentences/mean/text_to_image/recall@1",
    "untrained names, recall@1": "retrieval/emoji_unpaired/mean/text_to_image/recall@1",
    "translation found, bitext@1": "alignment/emoji_scenes/mean/bitext@1",
    "kind of emoji, accuracy": "text/emoji_category/mean/clean/accuracy",
    "scene holds emoji, accuracy": "text/emoji_entailment/mean/generalised/accuracy",
}
# Five columns behind the name, each two spaces apart: 80 characters, the width of most terminals.
_LINE = "{:<29}  {:>5}  {:>14}  {:>9}  {:>6}  {:>7}"


def run_demo(out: Path) -> None:
    """Run all stages into `out`, then print a table of what came out and what to do next.

    Raises:
        UserError: a stage stopped.
    """
    check_writable(out, is_folder=True)
    started = time.monotonic()
    build = ["data", "build", "emoji_scenes"]
    run_verb(build)
    note_command(out, build)  # the other verbs know the run folder and note themselves
    for arguments in (
        ["train", "emoji_scenes", "--out", str(out)],
        ["eval", "emoji_scenes", "--model", str(out), "--untrained"],
        *(["finetune", task, "--model", str(out)] for task in TASKS),
        ["export", str(out), *(w for f in FORMATS for w in ("--format", f)), "--data", TEST_DATA],
        ["report", str(out)],
    ):
        run_verb(arguments)
    minutes = (time.monotonic() - started) / 60
    console.say("\nmmalign demo, means over the languages:\n")
    console.say(make_table(read_results(out / "results.json")))
    console.say(
        f"\n{minutes:.1f} minutes. Next: open {out / 'report.html'}, then search by text or image with\n"
        f"mmalign search --model {out} --data {TEST_DATA}"
    )


def make_table(results: Results) -> str:
    """The rows of `_ROWS` that were measured, with the untrained model and chance beside them."""
    lines = [_LINE.format("measure", "value", "worst language", "untrained", "chance", "n")]
    untrained = results.baselines["untrained"].metrics
    for words, name in _ROWS.items():
        if name in results.metrics:
            tables = (results.metrics, untrained, results.chance)
            value, before, chance = (f"{of[name]:.3f}" if name in of else "" for of in tables)
            cells = (value, _worst(results, name), before, chance, f"{results.counts[name]:,}")
            lines.append(_LINE.format(words, *cells))
    return "\n".join(lines)


def _worst(results: Results, mean_name: str) -> str:
    """The lowest value among the languages whose mean this is, with its language."""
    names = map(MetricName.parse, results.metrics)
    ones = (n for n in names if not n.is_aggregate and str(n.of("mean")) == mean_name)
    worst = min(ones, key=lambda one: results.metrics[str(one)])
    return f"{results.metrics[str(worst)]:.3f} ({worst.language})"
