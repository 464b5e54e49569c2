"""One folder that several libraries load: written format by format, merged, verified, committed.

model -> Source -> one folder per format -> merged -> lineage, NOTICE, results, .eval_results/, README.md
       -> loaded by each library in a clean process (verify.py) -> MANIFEST.json, renamed into place

For the hub: the files of such a folder, or new ones -> a temporary folder -> its name on the hub in the card
             and in open_clip's configuration -> hub.py
"""

import json
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from mmalign import __version__
from mmalign.core.commit import MANIFEST, check_writable, committed_folder, verify, write_json
from mmalign.core.console import say
from mmalign.core.errors import UserError
from mmalign.export.card import write_card
from mmalign.export.hub import push
from mmalign.export.licenses import License, license_of, warn_about_data, write_notice
from mmalign.export.measurements import write_eval_results
from mmalign.export.onnx import write_onnx
from mmalign.export.open_clip import set_home, write_open_clip
from mmalign.export.sentence_transformers import write_router, write_sentence_transformers
from mmalign.export.short_vectors import write_vector_sizes
from mmalign.export.source import Source, read_source
from mmalign.export.transformers import write_transformers
from mmalign.export.verify import LOADERS, verify_export
from mmalign.results.results import read_results

FORMATS = tuple(LOADERS)
DEFAULT = ("sentence-transformers",)


def export(
    model: Path,
    out: Path,
    formats: Sequence[str] = (),
    license: License | None = None,
    data: Path | None = None,
) -> None:
    """Write a model to the folder `out`, which loads from there; an earlier export there is replaced.

    Args:
        model: a run, a checkpoint, a fine-tuning or a LoRA adapter (see `read_source`).
        formats: names in `FORMATS`, each once; none: those of the earlier export, or `DEFAULT`.
        license: for the card; none: the card names none.
        data: a test set on which the costs of short vectors and of the 8-bit text tower of `onnx` are
            measured.

    Raises:
        UserError: no model, a format cannot hold it, two cannot share a folder, or a library computes
            something else from it.
    """
    _check_formats(formats)
    if out.exists() and not _is_export(out):
        raise UserError(f"{out}: holds something that is not an export; give another --out")
    check_writable(out.parent, is_folder=True)
    source, held = read_source(model), _held(out)
    chosen = tuple(formats) or held or DEFAULT
    if lost := [name for name in held if name not in chosen]:
        say(f"{out}: held {', '.join(lost)} too, which this export replaces")
    # If anything below fails, nothing is left and `out` stays as it was.
    with committed_folder(out, _info(source, chosen)) as folder:
        write_files(source, folder, chosen, str(out.resolve()), data)
        _describe(source, folder, chosen, model_name(model), license)
        _verify(source, folder, chosen)
    warn_about_data(source.lineage, license)


def publish(
    model: Path,
    out: Path,
    formats: Sequence[str],
    repo_id: str,
    license: License | None = None,
    data: Path | None = None,
    *,
    private: bool = True,
    dry_run: bool = False,
) -> str | None:
    """Push a model to the hub as `repo_id` (OWNER/NAME); no local folder changes.

    Args:
        out: where a finished export may be. Its files are published if they are of this model and in the
            formats asked for. Otherwise the model is exported to a temporary folder.
        formats: none: those of the folder `out`, or `DEFAULT`.
        license: none: the one in the card of the folder `out`.
        private, dry_run: see `push`. Others: see `export`.

    Returns:
        The address of the commit; None after a dry run.

    Raises:
        UserError: see `export` and `push`.
    """
    _check_formats(formats)
    source = read_source(model)
    held = _held(out, source)
    chosen = tuple(formats) or held or DEFAULT
    with tempfile.TemporaryDirectory(prefix="mmalign-push-") as scratch:
        target = Path(scratch) / "export"
        with committed_folder(target, _info(source, chosen)) as folder:
            if set(chosen) == set(held) and data is None:
                say(f"{out}: its files are published, {', '.join(chosen)}")
                source = _copied(source, out, folder)
                license = license or license_of(folder / "README.md")
                set_home(folder, repo_id)
            else:
                say(
                    f"{out}: no export of this model in {', '.join(chosen)} is there; it is exported to a "
                    "temporary folder"
                )
                write_files(source, folder, chosen, repo_id, data)
                _verify(source, folder, chosen)
            _describe(source, folder, chosen, repo_id.rpartition("/")[2], license, repo_id)
        warn_about_data(source.lineage, license)
        return push(target, repo_id, private, dry_run)


def model_name(path: Path) -> str:
    """The name of a model: `demo` for runs/demo, `demo-task` for its fine-tuning on `task`."""
    path = path.resolve()
    while path.name in ("tower", "checkpoints") or path.name.startswith(("step-", "seed-")):
        path = path.parent
    home = path.parent
    return f"{home.parent.name}-{path.name}" if home.name == "finetune" else path.name


def _info(source: Source, formats: Sequence[str]) -> dict[str, Any]:
    facts = source.tower.facts
    return {"formats": list(formats), "model_sha256": facts["sha256"], "step": facts["step"]}


def _check_formats(formats: Sequence[str]) -> None:
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"--format {name}: known are {', '.join(FORMATS)}")


def _held(out: Path, source: Source | None = None) -> tuple[str, ...]:
    """The formats of the export in a folder; none where there is none, or one of another model or version."""
    path = out / MANIFEST
    if not path.is_file() or not _is_export(out):
        return ()
    facts = json.loads(path.read_text(encoding="utf-8"))
    if source is not None:
        lineage = json.loads((out / "lineage.json").read_text(encoding="utf-8"))
        # The card describes the files as this version writes them.
        is_new = lineage.get("exported_by", {}).get("version") == __version__
        if facts.get("model_sha256") != source.tower.facts["sha256"] or not is_new:
            return ()
    return tuple(name for name in facts.get("formats", ()) if name in FORMATS)


def _copied(source: Source, out: Path, folder: Path) -> Source:
    """Copy an export; returns the source with the lineage and the results that the export has."""
    # By the manifest: what others put beside the export is not published.
    for name in verify(out)["files"]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(out / name, folder / name)
    # Data sets and results may have moved since the export was made.
    lineage = json.loads((folder / "lineage.json").read_text(encoding="utf-8"))
    file = folder / "results.json"
    results = read_results(file) if file.is_file() else None
    return replace(source, lineage=lineage, results=results)


def _describe(
    source: Source,
    folder: Path,
    formats: Sequence[str],
    title: str,
    license: License | None,
    repo_id: str | None = None,
) -> None:
    """Write what describes the model: lineage, notice, results and the card."""
    write_json(folder / "lineage.json", source.lineage)
    write_notice(source.lineage, folder)
    if source.results is not None:
        source.results.write(folder / "results.json")
        write_eval_results(source.results, folder)
    write_card(source, folder, formats, title, license, repo_id)


def _verify(source: Source, folder: Path, formats: Sequence[str]) -> None:
    for library, off in verify_export(source, folder, formats).items():
        say(f"{library} loads it: its vectors differ from ours by at most {off:.1e}")


def _is_export(folder: Path) -> bool:
    """Whether the folder is empty, or holds what an earlier export wrote."""
    try:
        if not any(folder.iterdir()):
            return True
        facts = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(facts, dict) and ("formats" in facts or "format" in facts)


def write_files(
    source: Source, folder: Path, formats: Sequence[str], home: str, data: Path | None = None
) -> None:
    """Write the files of each format to `folder`.

    Args:
        home: where an open_clip folder looks for its towers: its path, or its name on the hub.
        data: see `export`.
    """
    writers: dict[str, Callable[[Source, Path], None]] = {
        "sentence-transformers": write_sentence_transformers,
        "sentence-transformers-router": write_router,
        "transformers": write_transformers,
        "open_clip": partial(write_open_clip, home=home),
        "onnx": partial(write_onnx, data=data),
    }
    if data is not None and source.encoder is not None:
        dims = source.config.get("objective", {}).get("dims") or ()
        write_vector_sizes(source.encoder, data, folder, dims)
    # Each format writes its own files first; then they are merged, or found to contradict each other.
    parts = folder / ".parts"
    for name in formats:
        part = parts / name
        part.mkdir(parents=True)
        writers[name](source, part)
        for path in sorted(p for p in part.rglob("*") if p.is_file()):
            _move(path, folder / path.relative_to(part), name)
    shutil.rmtree(parts)


def _move(path: Path, target: Path, format_name: str) -> None:
    """Move a file to `target`, or merge it with the one that another format has put there."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.exists():
        path.rename(target)
    elif (data := path.read_bytes()) != target.read_bytes():
        # Formats share a folder where the fields of their files do not contradict each other.
        both = (target.read_bytes(), data) if target.suffix == ".json" else (b"null", b"null")
        ours, theirs = map(json.loads, both)
        are_objects = isinstance(ours, dict) and isinstance(theirs, dict)
        if not are_objects or any(ours[name] != theirs[name] for name in ours.keys() & theirs):
            raise UserError(
                f"--format {format_name}: its {target.name} and that of another format contradict each "
                "other; export them one by one, each with its own --out"
            )
        write_json(target, {**ours, **theirs})
