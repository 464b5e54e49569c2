"""A lexical injection from a model to a model: probe, choose the layer, train, probe again.

LexicalInjectionConfig -> Lexicon -+
any text encoder or decoder       -+-> lexical/<lexicon>/...    the given model, and by mean-centring alone
                                   +-> layer -> training -> tower
                                   +-> injected/<lexicon>/...   the same after the training

The published choice of a layer looks at words pooled with their special tokens; the numbers that it used are
under `lexical/<lexicon>_all_tokens`.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmalign.core import console
from mmalign.core.errors import UserError
from mmalign.evaluation.lexical_probe import MEASURE, TRAINED, probe
from mmalign.evaluation.lexicon import Lexicon, read_lexicon
from mmalign.models.load import OWN_PROMPTS, load_text_encoder
from mmalign.models.prompts import Side
from mmalign.models.text_encoder import TextEncoder
from mmalign.results.metric_names import MEAN, layers_of
from mmalign.results.protocol import HOW, joined
from mmalign.results.results import Results, environment
from mmalign.results.seeds import mean_over_seeds
from mmalign.text.fit import copy_of
from mmalign.text.heads.base import check_finite
from mmalign.text.lexical.config import LexicalInjectionConfig
from mmalign.text.lexical.train import train
from mmalign.text.seeds import read_files, run_seeds

INJECTED = "injected"
ALL_TOKENS = "_all_tokens"


def inject(
    config: LexicalInjectionConfig,
    model: str,
    out: Path,
    prompts: Mapping[Side, str] = OWN_PROMPTS,
) -> Results:
    """Inject into a model (what `load_text_encoder` takes); files as `run_seeds` writes them.

    Raises:
        UserError: a lexicon or a model that cannot be used, or training that diverges.
    """
    lexicon = read_lexicon(config.lexicon)
    tower = load_text_encoder(model, prompts=prompts)
    # Hashed before training: files may be replaced while it runs.
    folder = Path(config.lexicon.folder)
    paths = (path for path in folder.iterdir() if path.suffix in (".tsv", ".txt"))
    data = [read_files(folder, paths)]
    before = measure_before(tower, lexicon, config)

    def run(seed: int) -> tuple[Results, TextEncoder]:
        return _run(tower, lexicon, before, config, seed)

    runs = run_seeds(config, config.seeds, model, out, lexicon.name, data, run)
    results = mean_over_seeds(runs)
    if len(runs) > 1:
        # The measurement before any training is the same for all seeds: it keeps its own intervals.
        after = {name: ci for name, ci in results.ci95.items() if name not in before.metrics}
        results.ci95 = after | before.ci95
        results.protocol |= before.protocol
    results.write(out / "results.json")
    return results


def run_seed(
    tower: TextEncoder, config: LexicalInjectionConfig, seed: int
) -> tuple[Results, TextEncoder]:
    """The measurements before and after one injection, and the injected copy of the tower."""
    lexicon = read_lexicon(config.lexicon)
    return _run(tower, lexicon, measure_before(tower, lexicon, config), config, seed)


def measure_before(tower: TextEncoder, lexicon: Lexicon, config: LexicalInjectionConfig) -> Results:
    """The probe of the given tower; twice where the choice of the layer uses another pooling."""
    results = Results(suite=f"{MEASURE}/{lexicon.name}", model=dict(tower.facts))
    words = [word for each in lexicon.lists.values() for word, _ in each.entries[:8]]
    # Some words of each language tell: weights that are NaN make every vector NaN.
    check_finite(tower, tower.encode(words))
    console.say(f"{lexicon.name}: probing the model as it is")
    probe(tower, lexicon, results)
    if config.pooling == "all":
        probe(tower, lexicon, results, "all", name=lexicon.name + ALL_TOKENS)
    return results


def choose_layer(before: Results, config: LexicalInjectionConfig) -> int:
    """The layer whose states are trained.

    Raises:
        UserError: the model has no such layer.
    """
    subject = config.lexicon.name + (ALL_TOKENS if config.pooling == "all" else "")
    probed = layers_of(before.metrics, MEASURE, subject)
    numbers = [int(one) for one in probed if one.isdigit()]
    last = numbers[-1]
    if config.layer != "best":
        layer = last if config.layer == "last" else config.layer
        if layer > last:
            raise UserError(f"layer: is {layer}, but the model has {last}; lower it")
        return layer
    # Layer 0 has nothing to adapt; the published rule never measured the last layer.
    candidates = numbers[1:-1] if config.best_by == "similarity" and last > 1 else numbers[1:]
    head, tail = f"{MEASURE}/{subject}/{MEAN}", f"{TRAINED}/{config.best_by}"
    return max(candidates, key=lambda one: before.metrics[f"{head}/{one}/{tail}"])


def _run(
    tower: TextEncoder, lexicon: Lexicon, before: Results, config: LexicalInjectionConfig, seed: int
) -> tuple[Results, TextEncoder]:
    layer = choose_layer(before, config)
    trained = copy_of(tower)  # the probe before, and the other seeds, need the unchanged one
    history = train(trained, lexicon, layer, config, seed) if config.epochs else {"steps": 0}
    results = Results(
        suite=f"{MEASURE}/{lexicon.name}",
        model={**tower.facts, "layer": layer, "seed": seed, **history},
        environment=environment(),
    )
    results.merge(before)
    probe(trained, lexicon, results, measure=INJECTED)
    name = f"{INJECTED}/{lexicon.name}"
    results.protocol[name] = joined(_protocol(config, layer), results.protocol[name])
    return results, trained


def _protocol(config: LexicalInjectionConfig, layer: int) -> dict[str, Any]:
    loss, lora = (
        ", ".join(f"{name} {value}" for name, value in one.model_dump(exclude_none=True).items())
        for one in (config.loss, config.lora)
    )
    chosen = f"{config.layer}, by {config.best_by}" if config.layer == "best" else str(config.layer)
    own = ", the settings of arXiv 2506.15415's code" if config.protocol == "published" else ""
    blocks = "up to it" if config.adapters != "all" else "(all)"
    return {
        HOW: f"Targeted lexical injection (protocol {config.protocol}{own}): loss ({{loss}}) on the "
        "states of layer {layer} (chosen: {chosen}), words pooled over {pooled_over} tokens in the choice "
        f"and in the loss; adapters ({{adapters}}) in the blocks {blocks}; "
        "{epochs} epochs of batches of {batch_size}, AdamW, rate {rate}. Measured on:",
        "loss": loss,
        "layer": layer,
        "chosen": chosen,
        "pooled_over": config.pooling,
        "adapters": lora,
        "epochs": config.epochs,
        "batch_size": config.batch_size,
        "rate": f"{config.lr:g}",
    }
