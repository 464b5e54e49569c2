"""Checks of an exported folder: what its files hold, and the vectors that each library computes from it.

folder -> check_files: nothing that runs code, leads out of the folder, or names this machine
Source -> our vectors of the probes -------------------------------------------+
folder -> loaders.py in a clean process, per library -> vectors ---------------+-> largest difference
"""

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open

from mmalign.core.errors import UserError
from mmalign.core.redact import has_secret, redact_text
from mmalign.export.probes import probe_images, probe_texts, write_probes
from mmalign.export.source import Source
from mmalign.models.text_encoder import TextEncoder

PROGRAM = Path(__file__).with_name("loaders.py")
SECONDS = 1800  # for one library, loading included
# Variables that a process needs to find its libraries and to use the machine as this one does.
_KEPT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
_UNSAFE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npy", ".npz", ".py", ".so")
_TEXT_SUFFIXES = (".json", ".jsonl", ".md", ".yaml", ".yml", ".txt", ".jinja")
# Vocabularies hold pieces of all kinds of texts: what looks like a path there is none of this machine.
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")
_NAMES_ITSELF = "open_clip_config.json"  # names its own folder, unless it was written for the hub
# Fields of open_clip (`hf_tokenizer_name`) begin as the hub's tokens do, which have capitals and digits.
_FIELD_NAMES = re.compile(r"\bhf_[a-z_]+\b")
_MACHINE_FOLDERS = r"/(?:home|Users|root|tmp|mnt|scratch|var)/[\w.-]+|~/[\w.-]+"


class Loader(NamedTuple):
    """A function of `loaders.py` and the largest difference that it may show."""

    package: str  # what it imports, and its name
    library: str  # the library's name for users
    outputs: tuple[str, ...] = ("texts", "images")  # a text tower alone has no `images`
    tolerance: float = 1e-6  # of one component, where the longest vector has length 1


LOADERS: dict[str, tuple[Loader, ...]] = {
    "sentence-transformers": (
        Loader("sentence_transformers", "sentence-transformers", ("texts",)),
        Loader("transformers", "transformers (AutoModel)", ("states",)),
    ),
    "sentence-transformers-router": (
        Loader("sentence_transformers", "sentence-transformers (Router)"),
    ),
    "transformers": (Loader("transformers", "transformers (VisionTextDualEncoder)"),),
    "open_clip": (Loader("open_clip", "open_clip"),),
    # ONNX Runtime fuses operations, so that sums are rounded in another order.
    "onnx": (Loader("onnxruntime", "ONNX Runtime", tolerance=1e-5),),
}


def verify_export(source: Source, folder: Path, formats: Sequence[str]) -> dict[str, float]:
    """Load the folder in each library that serves one of its formats, and compare the vectors.

    Returns:
        The largest difference of a component, for each library.

    Raises:
        UserError: a library cannot load the folder, computes other vectors from it or is not installed,
            or the folder holds what must not be published.
    """
    check_files(folder, is_published=False)
    tower = source.tower
    trunk = TextEncoder(tower.trunk, tower.tokenizer, "mean", max_length=tower.max_length)
    texts = probe_texts(tower.tokenizer.inner)
    ours = {"texts": tower.encode(texts, side=None), "states": trunk.encode(texts)}
    if source.encoder is not None:
        ours["images"] = source.encoder.encode_images(probe_images())
    differences = {}
    with tempfile.TemporaryDirectory(prefix="mmalign-verify-") as probes:
        write_probes(Path(probes), texts)
        for format_name in formats:
            for loader in LOADERS[format_name]:
                theirs = run_loader(loader, folder, Path(probes))
                differences[loader.library] = checked_difference(loader, ours, theirs)
    return differences


def run_loader(
    loader: Loader, folder: Path, probes: Path, python: str = sys.executable
) -> dict[str, np.ndarray]:
    """The vectors that a library computes from the folder: `texts` and, of a dual encoder, `images`.

    Args:
        python: of another environment; by default this one's.

    Raises:
        UserError: the library is not there, fails, or takes too long.
    """
    if python == sys.executable and importlib.util.find_spec(loader.package) is None:
        raise UserError(f"{loader.library} is not installed; run pip install 'mmalign[export]'")
    with tempfile.TemporaryDirectory(prefix="mmalign-loader-") as home:
        out = Path(home) / "out.npz"
        # -I: neither the working folder nor PYTHONPATH is searched for modules.
        paths = map(str, (folder.resolve(), probes, out))
        command = [python, "-I", str(PROGRAM), loader.package, *paths]
        # No variable that could name a folder of ours or hold a token, an empty home and cache, no hub.
        environment = {
            **{name: os.environ[name] for name in _KEPT if name in os.environ},
            "HOME": home,
            "HF_HOME": str(Path(home) / "cache"),
            "HF_HUB_OFFLINE": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": "",  # float32 on the CPU, as ours
            "PYTHONUTF8": "1",
        }
        try:
            result = subprocess.run(
                command,
                cwd=home,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise UserError(
                f"{loader.library}: did not finish within {SECONDS} seconds; the export is not verified"
            ) from None
        if result.returncode != 0:
            lines = result.stderr.decode("utf-8", "replace").strip().splitlines() or ["no message"]
            reason = redact_text(lines[-1].strip().replace(home, "..."))[:300]
            raise UserError(f"{loader.library}: cannot load the export ({reason})")
        with np.load(out) as vectors:
            return {name: vectors[name] for name in vectors.files}


def checked_difference(
    loader: Loader, ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]
) -> float:
    """The largest difference of a component.

    Raises:
        UserError: it is beyond the loader's tolerance, or a tower is missing.
    """
    largest = 0.0
    for name in loader.outputs:
        if name not in ours:
            continue
        if name not in theirs:
            raise UserError(f"{loader.library}: finds no tower for {name} in the export")
        difference = largest_difference(ours[name], theirs[name])
        if not difference <= loader.tolerance:  # also where it is not a number
            raise UserError(
                f"{loader.library}: computes other vectors from the export ({name} are off by "
                f"{difference:.1g}, {loader.tolerance:g} is allowed); export to another format"
            )
        largest = max(largest, difference)
    return largest


def largest_difference(ours_ND: np.ndarray, theirs_ND: np.ndarray) -> float:
    """The largest difference of a component; vectors longer than 1 are measured against the longest."""
    if ours_ND.shape != theirs_ND.shape:
        return float("inf")
    length = max(1.0, float(np.linalg.norm(ours_ND, axis=1).max()))
    return float(np.abs(ours_ND - theirs_ND).max()) / length


def check_files(folder: Path, is_published: bool) -> None:
    """Stop where a file could run code, leads out of the folder, or contains a secret or a path.

    Args:
        is_published: also refuse the one path that a folder for this machine may hold, its own.

    Raises:
        UserError: a pickle or a program, a symbolic link, a damaged safetensors file, a token, or a path
            of this machine.
    """
    # Where this process, its user, its libraries and the folder are; `/` or `/usr` would be found everywhere.
    places = (Path.home(), Path.cwd(), Path(sys.prefix), folder.resolve().parent)
    known = "|".join(re.escape(str(path)) for path in places if len(path.parts) > 2) or "(?!)"
    in_graph = re.compile(known.encode())
    in_text = re.compile(rf"(?<![\w.:/-])(?:{_MACHINE_FOLDERS}|(?:{known})(?![\w.-]))")
    for path in sorted(folder.rglob("*")):
        name, found = path.relative_to(folder).as_posix(), None
        if path.is_symlink():
            raise UserError(f"{name}: a symbolic link, which breaks elsewhere; copy the file")
        if path.suffix in _UNSAFE_SUFFIXES:
            raise UserError(f"{name}: can run code when it is loaded; take it out of the export")
        if path.suffix == ".safetensors":
            try:
                with safe_open(path, "np") as file:
                    file.keys()
            except (SafetensorError, OSError):
                raise UserError(f"{name}: not a complete safetensors file; export again") from None
        elif path.suffix == ".onnx":
            # Exporters note for each node the line of the source file that it came from.
            match = in_graph.search(path.read_bytes())
            found = match and match.group().decode()
        elif path.suffix in _TEXT_SUFFIXES and path.name not in _VOCABULARIES:
            text = path.read_text(encoding="utf-8", errors="replace")
            bare = _FIELD_NAMES.sub("", text)
            if has_secret(bare):
                raise UserError(
                    f"{name}: holds what looks like a token or a password; take it out and export again"
                )
            if name != _NAMES_ITSELF or is_published:
                in_file = in_text.search(text)
                found = in_file and in_file.group()
        if found:
            fix = "take it out and export again"
            if name == _NAMES_ITSELF:
                fix = "export it with --push OWNER/NAME"
            raise UserError(
                f"{name}: names a folder of this machine (`{found}`), which no other has; {fix}"
            )
