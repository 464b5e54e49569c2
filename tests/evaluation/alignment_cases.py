"""Small embedded sets, and what each rank measures on them: spawned processes must be able to import it."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
from tiny import tiny_model, tiny_tokenizer

from mmalign.evaluation.alignment import measure_alignment
from mmalign.evaluation.embed import EmbeddedSet
from mmalign.evaluation.geometry import measure_geometry
from mmalign.evaluation.layers import LayersConfig, probe_layers
from mmalign.evaluation.words import WordsConfig, measure_words
from mmalign.models.load import load_text_encoder
from mmalign.models.text_encoder import TextEncoder
from mmalign.results.results import Results


def unit(rows: np.ndarray) -> np.ndarray:
    """float32, each row scaled to length 1."""
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


def make_embedded(spaces: dict[str, np.ndarray], image_PD: np.ndarray | None = None) -> EmbeddedSet:
    """A set whose captions are `<language> <image>` with the given vectors, row i of image i."""
    most = max(len(rows) for rows in spaces.values())
    return EmbeddedSet(
        name="s",
        image_PD=next(iter(spaces.values())) if image_PD is None else image_PD,
        text_MD=np.concatenate(list(spaces.values())),
        sample_P=list(range(most)),
        picture_M=np.concatenate([np.arange(len(rows)) for rows in spaces.values()]),
        language_M=np.concatenate([[lang] * len(rows) for lang, rows in spaces.items()]),
        texts=[f"{lang} {i}" for lang, rows in spaces.items() for i in range(len(rows))],
    )


def random_spaces(count: int = 5, pictures: int = 30, width: int = 8) -> dict[str, np.ndarray]:
    """Languages that describe the same images with noise; the last ones describe fewer of them."""
    rng = np.random.default_rng(0)
    seen = rng.normal(size=(pictures, width))
    noisy = (seen + 0.7 * rng.normal(size=seen.shape) for _ in range(count))
    return {f"l{i}": unit(rows)[: pictures - 3 * i] for i, rows in enumerate(noisy)}


def encode_letters(texts: Sequence[str]) -> np.ndarray:
    """The vector of a text is how often it has each letter of the alphabet."""
    counts = [[text.count(chr(97 + i)) for i in range(26)] for text in texts]
    return unit(np.array(counts) + 1e-3)


def tiny_tower() -> TextEncoder:
    model = tiny_model()
    return TextEncoder(
        model.text_tower.trunk,
        tiny_tokenizer(),
        projection=model.text_projection,
        unit_length=True,
        max_length=32,
    )


def everything(dictionaries: Path) -> str:
    """All measures on this rank, as JSON."""
    results = Results(suite="x", model={})
    spaces = random_spaces()
    embedded = make_embedded(spaces, spaces["l0"])
    measure_alignment(embedded, results)
    measure_geometry(embedded, results)
    config = WordsConfig(name="d", folder=str(dictionaries))
    measure_words(encode_letters, config, results)
    return json.dumps(asdict(results))


def probed(run: Path) -> dict[str, float]:
    """Layers of the tower of a run, which holds its tokenizer."""
    results = Results(suite="x", model={})
    embedded = make_embedded(random_spaces(pictures=40))
    probe_layers(load_text_encoder(str(run)), embedded, results, LayersConfig(sets=("s",)))
    return results.metrics
