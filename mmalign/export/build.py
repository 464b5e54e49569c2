"""One folder that several libraries load: written format by format, merged, verified, committed.

model -> Source -> one folder per format -> merged -> lineage, results, .eval_results/, README.md
       -> loaded by each library in a clean process (verify.py) -> MANIFEST.json, renamed into place
"""

import json
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from mmalign.core.commit import MANIFEST, check_writable, committed_folder, write_json
from mmalign.core.errors import UserError
from mmalign.export.card import write_card
from mmalign.export.measurements import write_eval_results
from mmalign.export.onnx import write_onnx
from mmalign.export.open_clip import write_open_clip
from mmalign.export.sentence_transformers import write_router, write_sentence_transformers
from mmalign.export.source import Source, read_source
from mmalign.export.transformers import write_transformers
from mmalign.export.verify import LOADERS, verify_export

FORMATS = tuple(LOADERS)


def export(
    model: Path,
    out: Path,
    formats: Sequence[str],
    license: str | None = None,
    repo_id: str | None = None,
    data: Path | None = None,
) -> dict[str, float]:
    """Write a model to the folder `out`.

    Args:
        model: a run, a checkpoint, a fine-tuning or a LoRA adapter (see `read_source`).
        formats: names in `FORMATS`, each once.
        license: identifier for the card (`apache-2.0`); none: the card names none.
        repo_id: name on the hub (`someone/model`) that the folder will be published under; none: an
            open_clip folder loads by its name only from where it was written.
        data: a test set on which the loss by the 8-bit text tower of `onnx` is measured.

    Returns:
        The largest difference of a component to our own vectors, for each library that loaded it.

    Raises:
        UserError: no model, a format cannot hold it, two cannot share a folder, or a library computes
            something else from it.
    """
    for name in formats:
        if name not in FORMATS:
            raise UserError(f"--format {name}: known are {', '.join(FORMATS)}")
    if out.exists() and not _is_export(out):
        raise UserError(f"{out}: holds something that is not an export; give another --out")
    check_writable(out.parent, is_folder=True)
    source = read_source(model)
    facts = source.tower.facts
    info = {"formats": list(formats), "model_sha256": facts["sha256"], "step": facts["step"]}
    title = repo_id or source.config.get("name") or out.name
    # If anything below fails, nothing is left and `out` stays as it was.
    with committed_folder(out, info) as folder:
        write_files(source, folder, formats, repo_id or str(out.resolve()), data)
        write_json(folder / "lineage.json", source.lineage)
        if source.results is not None:
            source.results.write(folder / "results.json")
            write_eval_results(source.results, folder)
        write_card(source, folder, formats, title, license, repo_id)
        return verify_export(source, folder, formats)


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
