"""What may lie in a folder that others load: nothing that runs code, leads out of it, or tells of a machine.

folder -> every file: its kind, its header (safetensors), its words (JSON, Markdown, YAML) -> or UserError
"""

import re
import sys
from pathlib import Path

from safetensors import SafetensorError, safe_open

from mmalign.core.errors import UserError
from mmalign.core.redact import redact_text

UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".py", ".so")
TEXT_SUFFIXES = (".json", ".jsonl", ".md", ".yaml", ".yml", ".txt", ".jinja")
# Vocabularies hold pieces of anybody's texts; what looks like a path there says nothing of this machine.
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")
OWN_PLACE = "open_clip_config.json"  # names the folder itself, unless it was written for the hub
# Fields of open_clip (`hf_tokenizer_name`) begin as the hub's tokens do, which have capitals and digits.
FIELD_NAMES = re.compile(r"\bhf_[a-z_]+\b")
MACHINE_FOLDERS = r"/(?:home|Users|root|tmp|mnt|scratch|var)/[\w.-]+|~/[\w.-]+"


def check_files(folder: Path, is_published: bool) -> None:
    """Stop where a file could run code, leads out of the folder, or says too much.

    Args:
        is_published: also refuse the one path that a folder for this machine may hold, its own.

    Raises:
        UserError: a pickle or a program, a symbolic link, a damaged safetensors file, a token, or a path
            of this machine.
    """
    places = _places(folder)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink():
            raise UserError(
                f"{name}: a symbolic link, which leads nowhere elsewhere; copy the file"
            )
        if path.suffix in UNSAFE_SUFFIXES:
            raise UserError(f"{name}: can run code when it is loaded; take it out of the export")
        if path.suffix == ".safetensors":
            _check_tensors(path, name)
        elif path.suffix == ".onnx":
            _check_graph(path, name, places)
        elif path.suffix in TEXT_SUFFIXES and path.name not in VOCABULARIES:
            text = path.read_text(encoding="utf-8", errors="replace")
            _check_secrets(text, name)
            if name != OWN_PLACE or is_published:
                _check_paths(text, name, places)


def _places(folder: Path) -> list[str]:
    """Where this process, its user, its libraries and the folder are."""
    places = (Path.home(), Path.cwd(), Path(sys.prefix), folder.resolve().parent)
    return [str(path) for path in places if len(path.parts) > 2]


def _check_tensors(path: Path, name: str) -> None:
    try:
        with safe_open(path, "np") as file:
            file.keys()
    except (SafetensorError, OSError):
        raise UserError(f"{name}: not a whole safetensors file; export again") from None


def _check_graph(path: Path, name: str, places: list[str]) -> None:
    """Exporters note in each node which line of which file it came from."""
    data = path.read_bytes()
    for place in places:
        if place.encode() in data:
            raise _refusal(name, place)


def _check_secrets(text: str, name: str) -> None:
    text = FIELD_NAMES.sub("", text)
    if redact_text(text) != text:
        raise UserError(
            f"{name}: holds what looks like a token or a password; take it out of the run's configuration "
            "and export again"
        )


def _check_paths(text: str, name: str, places: list[str]) -> None:
    known = [rf"{re.escape(place)}(?![\w.-])" for place in places]
    found = re.search(rf"(?<![\w.:/-])(?:{'|'.join([MACHINE_FOLDERS, *known])})", text)
    if found:
        raise _refusal(name, found.group())


def _refusal(name: str, place: str) -> UserError:
    is_own = name == OWN_PLACE
    mend = "export it with --push OWNER/NAME" if is_own else "take it out and export again"
    return UserError(
        f"{name}: names a folder of this machine (`{place}`), which nobody else has; {mend}"
    )
