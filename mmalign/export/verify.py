"""An exported folder, loaded as its readers will: each library in a clean process, compared with ours.

    Source -> our vectors of the probes -----------------------------------------+
    folder -> loaders/<library>.py in a process of its own -> the library's ones -+-> largest difference

A clean process: another working folder, an empty home and cache, the hub switched off, no variable that could
name a folder of ours or hold a token, none of mmalign imported. Texts and pictures are those of `probes.py`;
pictures that are transparent are left out (libraries lay them on other backgrounds), and so are dirty texts
for open_clip, which mends them.
"""

import importlib.util
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mmalign.core.errors import UserError
from mmalign.core.redact import redact_text
from mmalign.export.file_checks import check_files
from mmalign.export.probes import probe_pictures, probe_texts, read_texts, write_probes
from mmalign.export.source import Source

TOLERANCE = 1e-6  # of one component, where the longest vector has length 1
SECONDS = 1800  # for one library, loading included
# What a process needs to find its libraries and to use the machine as this one does.
KEPT_VARIABLES = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True)
class Loader:
    """A program of `loaders/` and what it is held to.

    Attributes:
        program: name of its file, without the suffix.
        library: the library's name for people.
        package: what it imports; not there: the library is not installed.
        has_images: whether its format holds the image tower, where there is one.
        mends_texts: it changes dirty texts before it encodes them.
    """

    program: str
    library: str
    package: str
    has_images: bool = True
    mends_texts: bool = False
    tolerance: float = TOLERANCE


LOADERS: dict[str, tuple[Loader, ...]] = {
    "sentence-transformers": (
        Loader(
            "sentence_transformers_texts",
            "sentence-transformers",
            "sentence_transformers",
            has_images=False,
        ),
        Loader("transformers_trunk", "transformers (AutoModel)", "transformers", has_images=False),
    ),
    "sentence-transformers-router": (
        Loader(
            "sentence_transformers_router",
            "sentence-transformers (Router)",
            "sentence_transformers",
        ),
    ),
    "transformers": (
        Loader("transformers_dual", "transformers (VisionTextDualEncoder)", "transformers"),
    ),
    "open_clip": (Loader("open_clip_folder", "open_clip", "open_clip", mends_texts=True),),
    "onnx": (Loader("onnx_runtime", "ONNX Runtime", "onnxruntime", tolerance=1e-5),),
}


def verify_export(source: Source, folder: Path, formats: Sequence[str]) -> dict[str, float]:
    """Load the folder in each library that serves one of its formats, and compare the vectors.

    Args:
        folder: from where it stands; it needs no manifest yet.

    Returns:
        The largest difference of a component, for each library.

    Raises:
        UserError: a library cannot load the folder, computes other vectors from it or is not installed,
            or the folder holds what must not be published.
    """
    check_files(folder, is_published=False)
    with tempfile.TemporaryDirectory(prefix="mmalign-verify-") as scratch:
        probes = Path(scratch) / "probes"
        probes.mkdir()
        write_probes(probes)
        ours = our_vectors(source, probes)
        return {
            loader.library: checked_difference(loader, ours, run_loader(loader, folder, probes))
            for name in formats
            for loader in LOADERS[name]
        }


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
        raise UserError(
            f"{loader.library} is not installed, so the export cannot be verified in it: "
            "pip install 'mmalign[export]'"
        )
    program = Path(__file__).parent / "loaders" / f"{loader.program}.py"
    with tempfile.TemporaryDirectory(prefix="mmalign-loader-") as home:
        out = Path(home) / "out.npz"
        command = [python, "-I", str(program), str(folder.resolve()), str(probes), str(out)]
        try:
            result = subprocess.run(
                command,
                cwd=home,
                env=_clean_environment(home),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=SECONDS,
                check=False,
            )
        except subprocess.TimeoutExpired:
            reason = f"did not finish within {SECONDS} seconds"
            raise UserError(f"{loader.library}: {reason}; the export is not verified") from None
        if result.returncode != 0:
            raise UserError(
                f"{loader.library}: cannot load the export ({_last_line(result.stderr, home)})"
            )
        with np.load(out) as vectors:
            return {name: vectors[name] for name in vectors.files}


def _clean_environment(home: str) -> dict[str, str]:
    kept = {name: os.environ[name] for name in KEPT_VARIABLES if name in os.environ}
    return {
        **kept,
        "HOME": home,
        "HF_HOME": str(Path(home) / "cache"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "CUDA_VISIBLE_DEVICES": "",
        "PYTHONUTF8": "1",
    }


def _last_line(stderr: bytes, home: str) -> str:
    lines = stderr.decode("utf-8", "replace").strip().splitlines() or ["it said nothing"]
    return redact_text(lines[-1].strip().replace(home, "..."))[:300]


def our_vectors(source: Source, probes: Path) -> dict[str, np.ndarray]:
    texts = read_texts(probes)
    if source.encoder is None:
        return {"texts": source.tower.encode(texts)}
    opaque = [picture.data for picture in probe_pictures() if not picture.is_transparent]
    return {
        "texts": source.encoder.encode_texts(texts),
        "images": source.encoder.encode_images(opaque),
    }


def checked_difference(
    loader: Loader, ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]
) -> float:
    """The largest difference of a component, which is small enough."""
    compared = dict(_pairs(loader, ours, theirs))
    for name, difference in compared.items():
        if not difference <= loader.tolerance:  # also where it is not a number
            raise UserError(
                f"{loader.library}: computes other vectors from the export ({name} are off by "
                f"{difference:.1g}, {loader.tolerance:g} is allowed), so it is not the same model there"
            )
    return max(compared.values())


def _pairs(
    loader: Loader, ours: dict[str, np.ndarray], theirs: dict[str, np.ndarray]
) -> Iterator[tuple[str, float]]:
    """How far the texts and, where the format holds them, the pictures are off."""
    clean = len(probe_texts())
    rows = slice(clean) if loader.mends_texts else slice(None)
    names = ["texts", "images"] if loader.has_images and "images" in ours else ["texts"]
    for name in names:
        if name not in theirs:
            raise UserError(f"{loader.library}: finds no tower for {name} in the export")
        chosen = rows if name == "texts" else slice(None)
        yield name, largest_difference(ours[name][chosen], theirs[name][chosen])


def largest_difference(ours_ND: np.ndarray, theirs_ND: np.ndarray) -> float:
    """The largest difference of a component; vectors longer than 1 are measured against the longest."""
    if ours_ND.shape != theirs_ND.shape:
        return float("inf")
    length = max(1.0, float(np.linalg.norm(ours_ND, axis=1).max()))
    return float(np.abs(ours_ND - theirs_ND).max()) / length
