"""Where a model comes from: `lineage.json`, which leads from an export back to the shards it was trained on.

    run         MANIFEST.json, state.json, config.yaml -> model, code, config, run -+
                manifest.json of each training set     -> data: recipe, shards     -+
    fine-tuning MANIFEST.json of its tower             -> model, code, task data   -+-> one tree
    adapter     adapter_config.json                    -> model, config            -+
    whatever it was made from                          -> parent: the same tree    -+

What was not recorded is left out. A data set or a parent that is not found where it lay, or is another one
by its sha256, is named with that sha256 and `"found": false`. Nothing tells how somebody's disk is laid out.
"""

import hashlib
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmalign.core.code_version import code_version
from mmalign.core.commit import MANIFEST, sha256_of
from mmalign.core.config import read_yaml
from mmalign.core.errors import UserError
from mmalign.core.redact import redact
from mmalign.data.shards.manifest import MANIFEST as DATA_MANIFEST
from mmalign.models import adapters
from mmalign.models.encoder import run_of
from mmalign.models.load import load_text_encoder
from mmalign.models.text_encoder import saved_text_encoder
from mmalign.results.collect import measured_on
from mmalign.results.results import Results, read_results

FILE = "lineage.json"
FORMAT_VERSION = 1
MOST_SHARDS = 1000  # more are given by their number and one sha256
# A path from the root, from a home or upwards, plain or behind a scheme of open_clip; but no URL.
_ON_DISK = re.compile(
    r"^((?:local-dir|file):)?(?:/{1,3}(?!/)|~|\.\./|[A-Za-z]:[\\/]).*?([^\\/]*)[\\/]?$"
)


def lineage(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    """What `lineage.json` says of a model.

    Args:
        path: a run, one of its checkpoints, a fine-tuning, its tower, or a LoRA adapter.
        facts: `sha256` of the weights and `step` of the model that was read from there.
    """
    return {"format": FORMAT_VERSION, **_of(path, facts), "exported_by": code_version()}


def without_folders(tree: Any) -> Any:
    """Of paths on a disk only the last name: how somebody's disk is laid out stays private."""
    if isinstance(tree, dict):
        return {key: without_folders(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return [without_folders(value) for value in tree]
    return _ON_DISK.sub(r"\1.../\2", tree) if isinstance(tree, str) else tree


def without_paths(results: Results) -> Results:
    """Where the model lay on somebody's disk is not published; its sha256 says which one it was."""
    facts = {name: value for name, value in results.model.items() if name != "path"}
    baselines = {name: without_paths(inner) for name, inner in results.baselines.items()}
    return replace(results, model=facts, baselines=baselines)


def enclosing_run(path: Path) -> Path | None:
    """The run in whose `finetune` folder a fine-tuning lies; None: it lies elsewhere."""
    parents = path.resolve().parents
    return next((folder.parent for folder in parents if folder.name == "finetune"), None)


def config_of_finetuning(tower: Path) -> dict[str, Any]:
    """The resolved configuration beside a tower, or above it where each seed has a folder; {}: none."""
    for folder in (tower.parent, tower.parent.parent):
        if (folder / "config.yaml").is_file():
            return dict(read_yaml(folder / "config.yaml"))
    return {}


def _of(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    if (path / adapters.CONFIG).is_file():
        return _of_adapter(path, facts)
    tower = saved_text_encoder(path)
    return _of_run(path, facts) if tower is None else _of_finetuning(tower, facts)


def _of_run(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    run = run_of(path)
    folder = run / "checkpoints" / f"step-{facts['step']:09d}" if path == run else path
    manifest, config = _json(folder / MANIFEST), dict(read_yaml(run / "config.yaml"))
    state = _json(folder / "state.json")
    counted = {"steps": state.get("step"), "pairs_seen": state.get("pairs_seen")}
    return _known(
        {
            "model": {"kind": "run", "sha256": facts["sha256"], "step": facts["step"]},
            "code": manifest.get("code"),
            **_config(config, manifest.get("config_sha256")),
            "run": _known({**counted, "world_size": manifest.get("world_size")}),
            "data": _data(config, manifest.get("data", [])),
            "tokenizer": _tokenizer(run / "tokenizer", config.get("tokenizer", {})),
            "base_models": _base_models(config["model"]),
            "parent": _parent_of_run(config, state.get("parent")),
            "evaluation": [
                _evaluation(file, results, run)
                for file, results in measured_on(run, facts["sha256"]).items()
            ],
        }
    )


def _of_finetuning(tower: Path, facts: dict[str, Any]) -> dict[str, Any]:
    manifest, parent = _json(tower / MANIFEST), {}
    model = manifest.get("model", {})
    if "sha256" in model:
        near = enclosing_run(tower)
        parent = _parent(model.get("path", ""), model["sha256"], model.get("step", 0), near)
    file = tower.parent / "results.json"
    trained = {k: v for k, v in model.items() if k not in ("path", "sha256", "step")}
    return _known(
        {
            "model": {"kind": "fine-tuning", "sha256": facts["sha256"], **trained},
            "code": manifest.get("code"),
            **_config(config_of_finetuning(tower)),
            "task": manifest.get("task"),
            "data": without_folders(manifest.get("data", [])),
            "tokenizer": _tokenizer(tower),
            "base_models": _known({"text": manifest.get("base_model")}),
            "parent": parent,
            "evaluation": [_evaluation(file, read_results(file), tower.parent)]
            if file.is_file()
            else [],
        }
    )


def _of_adapter(folder: Path, facts: dict[str, Any]) -> dict[str, Any]:
    files = {name: sha256_of(folder / name) for name in (adapters.CONFIG, adapters.WEIGHTS)}
    base = adapters.base_of(folder)
    return _known(
        {
            "model": {"kind": "adapter", "sha256": facts["sha256"], "files": files},
            **_config(adapters.settings_of(folder)),
            # It was loaded from there a moment ago: what is no folder is a name on the hub.
            "base_models": {} if Path(base).exists() else {"text": base},
            "parent": _parent(base, None),
        }
    )


def _config(config: dict[str, Any], sha256: str | None = None) -> dict[str, Any]:
    """The configuration as it is published, and the sha256 of the whole one.

    Args:
        sha256: as the model's manifest recorded it; by default that of the tree's sorted JSON.
    """
    whole = sha256 or _sha256_of_tree(config)
    return {"config": without_folders(redact(config)), "config_sha256": whole} if config else {}


def _data(config: dict[str, Any], recorded: list[str]) -> list[dict[str, Any]]:
    """Each training set, in the order of the configuration."""
    entries = config.get("data", {}).get("train", [])
    folders = [entry["path"] if isinstance(entry, dict) else entry for entry in entries]
    return [_data_set(Path(folder), sha) for folder, sha in zip(folders, recorded, strict=False)]


def _data_set(folder: Path, sha256: str) -> dict[str, Any]:
    path = folder / DATA_MANIFEST
    found = path.is_file() and sha256_of(path) == sha256
    if not found:
        return {"manifest_sha256": sha256, "found": False}
    tree = _json(path)
    shards = [
        {
            "file": shard["file"],
            "sha256": tree["files"][shard.get("path") or shard["file"]]["sha256"],
            "samples": shard["samples"],
        }
        for shard in tree["shards"]
    ]
    languages: dict[str, int] = {}
    for shard in tree["shards"]:
        for code, captions in shard["languages"].items():
            languages[code] = languages.get(code, 0) + captions
    return _known(
        {
            "manifest_sha256": sha256,
            "found": True,
            "name": tree["name"],
            "split": tree["split"],
            "recipe": without_folders(redact(tree["recipe"])),
            "recipe_sha256": tree["recipe_sha256"],
            "samples": sum(shard["samples"] for shard in tree["shards"]),
            "captions": sum(shard["captions"] for shard in tree["shards"]),
            "languages": dict(sorted(languages.items())),
            "licenses": tree.get("licenses"),
            "shards": shards
            if len(shards) <= MOST_SHARDS
            else {"count": len(shards), "sha256": _sha256_of_tree(shards)},
        }
    )


def _tokenizer(folder: Path, config: dict[str, Any] | None = None) -> dict[str, Any]:
    path = folder / "tokenizer.json"
    config = config or {}
    return _known(
        {
            "kind": config.get("kind"),
            "name": without_folders(config.get("name")),
            "sha256": sha256_of(path) if path.is_file() else None,
        }
    )


def _base_models(model: dict[str, Any]) -> dict[str, Any]:
    """What the towers started with, by the names that their libraries know; nothing of random weights."""
    image, text = model.get("image", {}), model.get("text", {})
    weights = image.get("pretrained")
    named = {"library": image.get("kind"), "name": without_folders(image.get("name"))}
    if isinstance(weights, str):
        named["weights"] = without_folders(weights)
    return _known(
        {
            "text": without_folders(text.get("pretrained")),
            "image": named if weights else None,
        }
    )


def _parent_of_run(
    config: dict[str, Any], recorded: dict[str, Any] | None
) -> dict[str, Any] | None:
    """The run or export that a run went on from: `recorded` when it started, or as its configuration says."""
    if recorded is None:
        how = next((name for name in ("resume_from", "init_from") if config.get(name)), None)
        if how is None:
            return None
        return {"how": how, "name": without_folders(config[how]), "found": False}
    how, sha256 = recorded["how"], recorded["manifest_sha256"]
    path = Path(recorded["path"])
    for folder in (path, *sorted(path.glob("checkpoints/step-*"))):
        if (folder / MANIFEST).is_file() and sha256_of(folder / MANIFEST) == sha256:
            return {"how": how, "found": True, "manifest_sha256": sha256, **_of_folder(folder)}
    named = {"how": how, "name": without_folders(recorded["path"]), "found": False}
    return _known({**named, "manifest_sha256": sha256})


def _parent(
    name: str, sha256: str | None, step: int = 0, near: Path | None = None
) -> dict[str, Any]:
    """The model that a text tower was fine-tuned from.

    Args:
        name: folder or hub name, as it was given then.
        sha256: of its weights; None: nobody recorded it.
        step: of the run it was.
        near: the run in which the fine-tuning lies, which may have moved as a whole.
    """
    for folder in (Path(name), near):
        if folder is None or not folder.is_dir():
            continue
        checkpoint = folder / "checkpoints" / f"step-{step:09d}"
        place = checkpoint if checkpoint.is_dir() else folder
        try:
            known = _of_folder(place, sha256)
        except UserError:
            continue
        return {"name": without_folders(name), "found": True, **known}
    model = {} if sha256 is None else {"model": {"sha256": sha256}}
    return {"name": without_folders(name), "found": False, **model}


def _of_folder(folder: Path, sha256: str | None = None) -> dict[str, Any]:
    """The lineage of whatever model a folder holds.

    Raises:
        UserError: none, or one of another sha256 than the wanted one.
    """
    written = _json(folder / FILE)
    facts = {} if written and sha256 is None else load_text_encoder(str(folder)).facts
    if sha256 is not None and facts["sha256"] != sha256:
        raise UserError(f"{folder}: holds another model now")
    if written:
        return {name: part for name, part in written.items() if name != "format"}
    is_ours = (run_of(folder) / "config.yaml").is_file() or saved_text_encoder(folder) is not None
    if is_ours or (folder / adapters.CONFIG).is_file():
        return _of(folder, facts)
    return {"model": {"kind": "model", "sha256": facts["sha256"]}}


def _evaluation(file: Path, results: Results, home: Path) -> dict[str, Any]:
    return {
        "file": file.relative_to(home).as_posix(),
        "sha256": sha256_of(file),
        "suite": results.suite,
        "data": results.data,
    }


def _known(tree: dict[str, Any]) -> dict[str, Any]:
    """Without what nobody recorded."""
    return {name: value for name, value in tree.items() if value not in (None, {}, [])}


def _json(path: Path) -> dict[str, Any]:
    """The object in a file; {}: there is no such file."""
    if not path.is_file():
        return {}
    tree: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return tree


def _sha256_of_tree(tree: Any) -> str:
    return hashlib.sha256(json.dumps(tree, sort_keys=True).encode()).hexdigest()
