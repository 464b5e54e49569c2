"""The model that a run begins with: pretrained towers at its first start, later the same networks to fill.

    first start                    -> build_dual_encoder, pretrained weights -> their origins -> RunTowers
    resume, resume_from, init_from -> RunTowers of the run that has the weights -> random weights

`initialization.py` then fills it, unless the run starts from scratch.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

from mmalign.core import distributed
from mmalign.core.config import read_yaml, validate
from mmalign.data.tokenizer import Tokenizer
from mmalign.models.dual_encoder import DualEncoder, ModelConfig, build_dual_encoder
from mmalign.models.encoder import run_of, weights_sha256
from mmalign.models.external.open_clip import WEIGHTS
from mmalign.models.image_tower import resized, without_origin
from mmalign.models.run_towers import RunTowers, read_towers, towers_of
from mmalign.models.stored_run import local_path
from mmalign.models.trained_parameters import TrainedParametersConfig
from mmalign.models.vocabulary import adapt_vocabulary, tokenizer_of
from mmalign.training.checkpoint import has_checkpoints
from mmalign.training.run_config import RunConfig


def known_towers(config: RunConfig, out: Path | None) -> RunTowers | None:
    """The towers of the run that this one goes on from, all of whose weights it will take.

    Args:
        out: the run's own folder, if it has one.

    Returns:
        None where there is no such run, it has none written down, or `model` here describes others.
    """
    if out is None or not has_checkpoints(out / "checkpoints"):
        name = config.resume_from or config.init_from
        # What is fetched here is what will be read of it.
        moments = bool(config.resume_from or config.init_optimizer)
        out = None if name is None else run_of(local_path(name, moments))
    towers = None if out is None else read_towers(out)
    if out is None or towers is None:
        return None
    path = out / "config.yaml"
    theirs = validate(ModelConfig, read_yaml(path).get("model"), f"{path}, section `model`")
    # These are this run's own choice.
    trained = set(TrainedParametersConfig.model_fields)
    free = {
        "image": trained | {"image_size"},
        "text": trained | {"train_embeddings", "pooling", "max_length"},
    }
    sides = [
        {side: getattr(m, side).model_dump(exclude=free[side]) for side in free}
        for m in (theirs, config.model)
    ]
    if sides[0] != sides[1]:
        return None
    size = config.model.image.image_size
    return (
        replace(towers, image=resized(towers.image, size)) if size != towers.image.size else towers
    )


def build_model(
    config: RunConfig, out: Path, tokenizer: Tokenizer
) -> tuple[DualEncoder, RunTowers]:
    """The model of a run on all ranks, before `init_from` or a checkpoint fills it.

    Raises:
        UserError: see `build_dual_encoder`.
    """

    def read() -> tuple[RunTowers | None, bool]:
        return known_towers(config, out), has_checkpoints(out / "checkpoints")

    known, goes_on = distributed.on_main(read)

    def build() -> tuple[DualEncoder, RunTowers]:
        if known is not None:
            # Those of `init_from` had the rows of another tokenizer, if this run changes it.
            if not goes_on and (config.tokenizer.keep or config.tokenizer.grow):
                known.text["vocab_size"] = tokenizer.vocabulary
                # The row of this id gets no gradient.
                known.text["pad_token_id"] = tokenizer.padding_id
            return known.build(config.model), known
        old = tokenizer_of(config.model.text, tokenizer)
        model = build_dual_encoder(config.model, old.vocabulary, old.padding_id)
        # What a run of mmalign 0.1.0 started from is not known any more when it goes on.
        knows_origin = distributed.is_main() and not goes_on
        origins = _origins(config.model, model) if knows_origin else {}
        adapted = adapt_vocabulary(model.text_tower.trunk, old, tokenizer)
        if adapted and knows_origin:
            origins["text"]["vocabulary"] = adapted
        return model, towers_of(model, origins)

    return distributed.on_all(build)


def _origins(config: ModelConfig, model: DualEncoder) -> dict[str, Any]:
    # Of the weights as they were loaded, before anything else replaces them.
    image, trunks = config.image, (model.image_tower.trunk, model.text_tower.trunk)
    found: dict[str, Any] = {}
    if image != without_origin(image) or ":" in image.name:
        cfg = getattr(trunks[0], "pretrained_cfg", {})
        repository = cfg.get("hf_hub_id") if image.pretrained and not cfg.get("file") else None
        if image.name.startswith("hf-hub:"):
            repository = image.name.removeprefix("hf-hub:")
        facts = {"library": image.kind, "name": image.name, "revision": _revision(repository)}
        weights = {"weights": image.pretrained} if isinstance(image.pretrained, str) else {}
        found["image"] = {**facts, **weights, "sha256": weights_sha256(trunks[0])}
    if config.text.pretrained:
        facts = {"library": "transformers", "name": config.text.pretrained}
        facts["revision"] = getattr(trunks[1].config, "_commit_hash", None)
        found["text"] = {**facts, "sha256": weights_sha256(trunks[1])}
    return found


def _revision(repository: str | None) -> str | None:
    # The commit of the hub's snapshot in the cache; None: the weights did not come from there.
    from huggingface_hub import try_to_load_from_cache

    for file in ("model.safetensors", "pytorch_model.bin", *WEIGHTS) if repository else ():
        path = try_to_load_from_cache(str(repository), file)
        if isinstance(path, str):
            return Path(path).parent.name
    return None
