"""What is exported: the towers, what was measured on them, their configuration, and where they come from.

    run, checkpoint         -> Encoder -> its text side -+
    tower of a fine-tuning  -----------------------------+-> TextEncoder -> Source -> the writers of formats
    adapter (LoRA)          -> merged into its base     -+       with results, configuration, lineage

`lineage.json` leads from an export back to the shards that the model was trained on:

    run         MANIFEST.json, state.json, config.yaml -> model, code, config, run -+
                manifest.json of each training set     -> data: recipe, shards     -+
    fine-tuning MANIFEST.json of its tower             -> model, code, task data   -+-> one tree
    adapter     adapter_config.json                    -> model, config            -+
    the model that it was made from                    -> parent: the same tree    -+

A data set or a parent that is not in its folder any more, or has another sha256, is named with the recorded
sha256 and `"found": false`.
"""

import hashlib
import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from mmalign.core.code_version import code_version
from mmalign.core.commit import MANIFEST, sha256_of, verify
from mmalign.core.config import read_yaml
from mmalign.core.console import say
from mmalign.core.errors import UserError
from mmalign.core.redact import redact
from mmalign.data.shards.manifest import MANIFEST as DATA_MANIFEST
from mmalign.data.shards.manifest import load_manifest
from mmalign.models import adapters
from mmalign.models.encoder import Encoder, load_encoder, run_of
from mmalign.models.load import load_text_encoder
from mmalign.models.run_towers import read_towers
from mmalign.models.text_encoder import TextEncoder, is_contrastive, saved_text_encoder, text_side
from mmalign.results.collect import measured_on, merged, result_files
from mmalign.results.results import Results, read_results

FILE = "lineage.json"
MOST_SHARDS = 1000  # more are given by their number and one sha256
# A path from the root, from a home or upwards, plain or behind a scheme of open_clip; but no URL.
_ON_DISK = re.compile(
    r"^((?:local-dir|file):)?(?:/{1,3}(?!/)|~|\.\./|[A-Za-z]:[\\/]).*?([^\\/]*)[\\/]?$"
)


@dataclass(frozen=True)
class Source:
    """A trained model that is exported."""

    # The text side in evaluation mode; of a contrastive run with the projection into the shared space.
    tower: TextEncoder
    # Both towers; None: a text tower alone (fine-tuned, merged, or a masked language model).
    encoder: Encoder | None = None
    results: Results | None = None  # what was measured on these weights
    config: dict[str, Any] = field(default_factory=dict)  # of the run or the fine-tuning, resolved
    lineage: dict[str, Any] = field(default_factory=dict)  # what `lineage.json` holds

    def both_towers(self, format_name: str) -> Encoder:
        """The dual encoder, or a UserError that a format holds no text tower alone."""
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
        return _finetuned(saved)
    run = run_of(folder)
    config = _yaml(run)
    if "model" not in config:
        raise UserError(
            f"{path}: nothing that can be exported: it is not a run (config.yaml), a checkpoint of one, a "
            "finished fine-tuning (tower/tower.json) or a LoRA adapter (adapter_config.json)"
        )
    encoder, contrastive = load_encoder(folder), is_contrastive(folder)
    found = measured_on(run, encoder.facts["sha256"])
    if not found and result_files(run):
        say(f"{run}: everything there was measured on other weights, and is left out")
    return Source(
        # A masked language model has a projection and an image tower that were never trained.
        tower=text_side(encoder, contrastive),
        encoder=encoder if contrastive else None,
        results=_without_paths(merged(found)) if found else None,
        config=config,
        lineage=lineage(folder, encoder.facts),
    )


def _finetuned(folder: Path) -> Source:
    verify(folder)
    tower = load_text_encoder(str(folder))
    file, results = folder.parent / "results.json", None
    if file.is_file():
        results = _without_paths(read_results(file))
        # The results name the model that was fine-tuned; what was measured is the tower.
        model = {**results.model, "fine_tuned_from": results.model["sha256"]}
        results = replace(results, model={**model, "sha256": tower.facts["sha256"]})
    return Source(tower, None, results, _config_of_finetuning(folder), lineage(folder, tower.facts))


def lineage(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """The content of `lineage.json`.

    Args:
        path: a run, one of its checkpoints, a fine-tuning, its tower, or a LoRA adapter.
        facts: `sha256` of the weights and `step` of the model that was read from there.
    """
    # All of it: names, parents and recipes may be URLs, and other programs write configurations too.
    return {"format": 1, **redact(_of(path, facts)), "exported_by": code_version()}


def without_folders(tree: Any) -> Any:
    """The tree with every path on a disk reduced to its last part, which is all that is published."""
    if isinstance(tree, dict):
        return {key: without_folders(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [without_folders(value) for value in tree]
    return _ON_DISK.sub(r"\1.../\2", tree) if isinstance(tree, str) else tree


def _without_paths(results: Results) -> Results:
    # The sha256 of the model says which one it was.
    facts = {name: value for name, value in results.model.items() if name != "path"}
    baselines = {name: _without_paths(inner) for name, inner in results.baselines.items()}
    return replace(results, model=facts, baselines=baselines)


def _config_of_finetuning(tower: Path) -> dict[str, Any]:
    # Where each seed has a folder, the configuration is above it.
    return _yaml(tower.parent) or _yaml(tower.parent.parent)


def _of(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    if (path / adapters.CONFIG).is_file():
        return _known(_of_adapter(path, facts))
    tower = saved_text_encoder(path)
    return _known(_of_run(path, facts) if tower is None else _of_finetuning(tower, facts))


def _of_run(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    run = run_of(path)
    folder = run / "checkpoints" / f"step-{facts['step']:09d}" if path == run else path
    manifest, state = _json(folder / MANIFEST), _json(folder / "state.json")
    config = _yaml(run)
    image, text = (config["model"].get(side, {}) for side in ("image", "text"))
    bases: dict[str, Any]
    towers = read_towers(run)
    if towers is not None and towers.origins:
        bases = {side: _known(origin) for side, origin in towers.origins.items()}
    else:  # of mmalign 0.1.0, which recorded what the configuration says alone
        weights = image.get("pretrained")  # True: those that the name of the network stands for
        tower = {"library": image.get("kind"), "name": image.get("name")}
        tower |= {"weights": weights} if isinstance(weights, str) else {}
        bases = {"text": text.get("pretrained"), "image": tower if weights else None}
    counted = {"steps": state.get("step"), "images_seen": state.get("images_seen")}
    counted["captions_seen"] = state.get("captions_seen", state.get("pairs_seen"))  # before 0.2
    entries = config.get("data", {}).get("train", [])
    folders = [Path(one["path"] if isinstance(one, dict) else one) for one in entries]
    return {
        "model": {"kind": "run", "sha256": facts["sha256"], "step": facts["step"]},
        "code": manifest.get("code"),
        **_config(config, manifest.get("config_sha256")),
        "run": _known({**counted, "world_size": manifest.get("world_size")}),
        # Fields that were changed on the way, with the step; `config` is as they ended.
        **({"changes": state["changes"]} if state.get("changes") else {}),
        # The manifest's hashes are in the order of the configuration.
        "data": [_data_set(*one) for one in zip(folders, manifest.get("data", []), strict=False)],
        "tokenizer": _tokenizer(run / "tokenizer", config.get("tokenizer", {})),
        "base_models": without_folders(_known(bases)),
        "parent": parent_of_run(config, state.get("parent")),
        "evaluation": _evaluation(measured_on(run, facts["sha256"]), run),
    }


def _of_finetuning(tower: Path, facts: dict[str, Any]) -> dict[str, Any]:
    manifest, file = _json(tower / MANIFEST), tower.parent / "results.json"
    model = manifest.get("model", {})
    # The run in whose `finetune` folder it lies may have moved, together with the fine-tuning.
    homes = [one.parent for one in tower.resolve().parents if one.name == "finetune"][:1]
    base, sha256, step = (model.pop(name, None) for name in ("path", "sha256", "step"))
    parent = parent_of(base or "", sha256, step or 0, homes) if sha256 else None
    measured = {file: read_results(file)} if file.is_file() else {}
    return {
        "model": {"kind": "fine-tuning", "sha256": facts["sha256"], **model},
        "code": manifest.get("code"),
        **_config(_config_of_finetuning(tower)),
        "task": manifest.get("task"),
        "data": without_folders(manifest.get("data", [])),
        "tokenizer": _tokenizer(tower, {}),
        "base_models": _known({"text": manifest.get("base_model")}),
        "parent": parent,
        "evaluation": _evaluation(measured, tower.parent),
    }


def _of_adapter(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    files = {name: sha256_of(folder / name) for name in (adapters.CONFIG, adapters.WEIGHTS)}
    base = adapters.base_of(folder)
    return {
        "model": {"kind": "adapter", "sha256": facts["sha256"], "files": files},
        **_config(adapters.settings_of(folder)),
        # It was loaded from there a moment ago: what is no folder is a name on the hub.
        "base_models": {} if Path(base).exists() else {"text": base},
        "parent": parent_of(base, None),
    }


def _config(config: dict[str, Any], recorded: str | None = None) -> dict[str, Any]:
    """The configuration as it is published, and the sha256 of the complete one, recorded or computed."""
    if not config:
        return {}
    sha256 = recorded or sha256_of_tree(config)
    return {"config": without_folders(config), "config_sha256": sha256}


def _data_set(folder: Path, sha256: str) -> dict[str, Any]:
    path = folder / DATA_MANIFEST
    manifest = None
    with suppress(UserError):  # nothing there, or none of ours
        manifest = load_manifest(folder).as_of(sha256)
    if manifest is None:
        return {"manifest_sha256": sha256, "found": False}
    tree = _json(path)
    shards: Any = [
        {"file": one.file, "sha256": manifest.files[one.tar]["sha256"], "samples": one.samples}
        for one in manifest.shards
    ]
    if len(shards) > MOST_SHARDS:
        shards = {"count": len(shards), "sha256": sha256_of_tree(shards)}
    facts = {
        "manifest_sha256": sha256,
        "found": True,
        "name": manifest.name,
        "split": manifest.split,
        "recipe": without_folders(manifest.recipe),
        "recipe_sha256": manifest.recipe_sha256,
        "samples": manifest.samples,
        "captions": sum(one.captions for one in manifest.shards),
        "languages": dict(sorted(manifest.languages.items())),
        "licenses": tree.get("licenses"),
        "attributions": tree.get("attributions"),
        "shards": shards,
    }
    return _known(facts)


def _tokenizer(folder: Path, config: dict[str, Any]) -> dict[str, Any]:
    path = folder / "tokenizer.json"
    sha256 = sha256_of(path) if path.is_file() else None
    name = without_folders(config.get("name"))
    return _known({"kind": config.get("kind"), "name": name, "sha256": sha256})


def parent_of_run(config: dict[str, Any], recorded: dict[str, Any] | None) -> dict[str, Any] | None:
    """The run or export that a run continued: as recorded when it started, or as its configuration says."""
    if recorded is None:
        how = next((name for name in ("resume_from", "init_from") if config.get(name)), None)
        if how is None:
            return None
        return {"how": how, "name": without_folders(config[how]), "found": False}
    path, sha256 = Path(recorded["path"]), recorded["manifest_sha256"]
    # Also the vocabulary that was changed, or that the optimizer's moments were taken.
    of_start = {name: recorded[name] for name in recorded if name != "path"}
    for folder in (path, *sorted(path.glob("checkpoints/step-*"))):
        if (folder / MANIFEST).is_file() and sha256_of(folder / MANIFEST) == sha256:
            facts = {**of_start, "found": True}
            with suppress(UserError):  # of mmalign 0.1.0, and its pretrained weights are gone
                return {**facts, **_of_folder(folder, None)}
    return _known({**of_start, "name": without_folders(recorded["path"]), "found": False})


def parent_of(
    name: str, sha256: str | None, step: int = 0, others: Sequence[Path] = ()
) -> dict[str, Any]:
    """The model that a text tower was fine-tuned from.

    Args:
        name: folder or hub name, as it was given for the fine-tuning.
        sha256: of its weights; None: not recorded.
        others: folders in which it may lie as well.
    """
    facts = {"name": without_folders(name), "found": True}
    for folder in (Path(name), *others):
        checkpoint = folder / "checkpoints" / f"step-{step:09d}"
        if folder.is_dir():
            try:
                return facts | _of_folder(checkpoint if checkpoint.is_dir() else folder, sha256)
            except UserError:  # no model, or another one: not the parent
                continue
    model = {} if sha256 is None else {"model": {"sha256": sha256}}
    return {**facts, "found": False, **model}


def _of_folder(folder: Path, sha256: str | None) -> dict[str, Any]:
    """The lineage of the model in a folder, or a UserError if there is none with this sha256."""
    written = _json(folder / FILE)
    # A lineage that an export wrote is taken as it is, unless the weights have to be checked.
    facts = {} if written and sha256 is None else load_text_encoder(str(folder)).facts
    if sha256 is not None and facts["sha256"] != sha256:
        raise UserError(f"{folder}: holds another model now")
    if written:
        return {name: part for name, part in written.items() if name != "format"}
    is_ours = (run_of(folder) / "config.yaml").is_file() or saved_text_encoder(folder) is not None
    if is_ours or (folder / adapters.CONFIG).is_file():
        return _of(folder, facts)
    return {"model": {"kind": "model", "sha256": facts["sha256"]}}


def _evaluation(measured: dict[Path, Results], home: Path) -> list[dict[str, Any]]:
    return [
        {
            "file": file.relative_to(home).as_posix(),
            "sha256": sha256_of(file),
            "suite": results.suite,
            "data": results.data,
        }
        for file, results in measured.items()
    ]


def _known(tree: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in tree.items() if value not in (None, {}, [])}


def _yaml(folder: Path) -> dict[str, Any]:
    """The resolved configuration in a folder; {}: there is none."""
    path = folder / "config.yaml"
    return dict(read_yaml(path)) if path.is_file() else {}


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; {}: there is no such file."""
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def sha256_of_tree(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
