"""The costs of shorter and quantised vectors are those of sentence-transformers' own functions."""

import json
from pathlib import Path

import numpy as np
import pytest
from export_cases import build_encoder
from sentence_transformers.quantization import quantize_embeddings
from sentence_transformers.util import truncate_embeddings
from shard_sets import make_set

from mmalign.data.shards.reader import ShardSet
from mmalign.evaluation.embed import embed_set
from mmalign.export.short_vectors import FILE, write_vector_sizes


def recall(text_MD: np.ndarray, image_PD: np.ndarray, picture_M: np.ndarray) -> float:
    score_MP = text_MD.astype(np.float32) @ image_PD.astype(np.float32).T
    right_M = score_MP[np.arange(len(score_MP)), picture_M].copy()
    score_MP[np.arange(len(score_MP)), picture_M] = -np.inf
    return float((right_M > score_MP.max(1) + 1e-6).mean())


def test_each_way_to_store_a_vector_is_measured(tmp_path: Path) -> None:
    data, encoder = make_set(tmp_path / "data", 12), build_encoder()
    write_vector_sizes(encoder, data, tmp_path)
    tree = json.loads((tmp_path / FILE).read_text(encoding="utf-8"))
    embedded = embed_set(encoder, ShardSet(data), "set")
    both = (embedded.text_MD, embedded.image_PD)
    assert (tree["captions"], tree["images"]) == tuple(map(len, both))

    every = np.concatenate(both)
    ranges = np.stack([every.min(0), every.max(0)])
    step_D = (ranges[1] - ranges[0]) / 255
    expected = {}
    for part in (16, 8, 4):
        cut = [truncate_embeddings(one, part) for one in both]
        unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in cut]
        expected["float32", part, 4 * part] = unit
    int8 = [quantize_embeddings(one, precision="int8", ranges=ranges) for one in both]
    expected["8 bits", 16, 16] = [ranges[0] + step_D * (one + 128.0) for one in int8]
    bits = [np.unpackbits(quantize_embeddings(one, precision="ubinary"), axis=1) for one in both]
    expected["signs", 16, 2] = [2.0 * one - 1 for one in bits]
    found = {
        (one["kind"], one["dimensions"], one["bytes"]): one["recall@1"] for one in tree["ways"]
    }
    assert found.keys() == expected.keys()
    for way, (text_MD, image_PD) in expected.items():
        value = recall(text_MD, image_PD, embedded.picture_M)
        assert found[way] == pytest.approx(value, abs=1e-5), way
