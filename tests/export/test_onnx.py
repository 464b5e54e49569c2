"""Both towers leave as ONNX graphs, compute the same there, and say what 8-bit weights cost."""

import importlib.util
import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_cases import build_encoder, files_of, source_of
from probe_cases import odd_texts, opaque_images
from shard_sets import make_set
from tiny import TEXTS, tiny_tokenizer
from torch import nn

from mmalign.core.errors import UserError
from mmalign.data.shards.reader import ShardSet
from mmalign.export import onnx_graphs, probes
from mmalign.export.onnx import write_onnx
from mmalign.export.onnx_graphs import quantisation_loss
from mmalign.export.source import Source
from mmalign.models.external.onnx import load_onnx
from mmalign.models.pooling import Pooling
from mmalign.models.text_encoder import TextEncoder


@pytest.fixture
def source(exported: Any) -> Source:
    return source_of(exported.encoder)


@pytest.fixture
def folder(exported: Any) -> Path:
    """Of an export to three formats, ONNX among them."""
    return exported.folder


def build_tower(name: str, pooling: Pooling, projection: nn.Module | None = None) -> TextEncoder:
    trunk, tokenizer = build_encoder(trunk=name).model.text_tower.trunk, tiny_tokenizer()
    facts = {"path": "somewhere", "step": 0, "sha256": "0" * 64}
    return TextEncoder(trunk, tokenizer, pooling, projection, projection is not None, 20, facts)


def difference(folder: Path, tower: TextEncoder) -> float:
    """Of the vectors of odd texts, made unit length, in batches of several sizes."""
    model, largest = load_onnx(str(folder)), 0.0
    for texts, size in ((odd_texts(), 17), (list(TEXTS), 1), (list(TEXTS), 4)):
        ours = tower.encode(texts)
        ours /= np.linalg.norm(ours, axis=1, keepdims=True)
        largest = max(largest, float(np.abs(model.encode_texts(texts, size) - ours).max()))
    return largest


def test_the_graphs_compute_what_the_towers_do(source: Source, folder: Path) -> None:
    assert difference(folder, source.tower) <= 1e-5
    assert source.encoder is not None
    images, model = opaque_images(), load_onnx(str(folder))
    ours = source.encoder.encode_images(images)
    assert np.abs(model.encode_images(images) - ours).max() <= 1e-5
    assert np.abs(model.encode_images(images[:3], 1) - ours[:3]).max() <= 1e-5
    states = {"text_embeds": ["batch", 16], "last_hidden_state": ["batch", "sequence", 32]}
    for name, inputs, outputs in (
        ("text_model", {"input_ids": ["batch", "sequence"]}, states),
        ("text_model_int8", {"attention_mask": ["batch", "sequence"]}, states),
        ("vision_model", {"pixel_values": ["batch", 3, 32, 32]}, {"image_embeds": ["batch", 16]}),
    ):
        path = folder / "onnx" / f"{name}.onnx"
        session = onnxruntime.InferenceSession(path)
        assert inputs.items() <= {one.name: one.shape for one in session.get_inputs()}.items()
        assert {one.name: one.shape for one in session.get_outputs()} == outputs
        versions = {one.domain: one.version for one in onnx.load(path).opset_import}
        assert versions[""] == 18 == json.loads((folder / "onnx/config.json").read_text())["opset"]


def test_the_same_bytes_again_in_silence_and_the_source_is_left_alone(
    source: Source,
    folder: Path,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    recwarn: pytest.WarningsRecorder,
) -> None:
    tower = source.tower
    before = {name: one.clone() for name, one in tower.state_dict().items()}
    attention, handlers = tower.trunk.config._attn_implementation, list(logging.root.handlers)
    write_onnx(source, tmp_path)
    files, exported = files_of(tmp_path), files_of(folder)
    assert files == {name: exported[name] for name in files}
    assert all(torch.equal(one, before[name]) for name, one in tower.state_dict().items())
    assert tower.trunk.config._attn_implementation == attention
    assert logging.root.handlers == handlers
    assert capfd.readouterr() == ("", "")
    assert [str(one.message) for one in recwarn] == []
    assert {"tokenizer.json", "preprocessor_config.json", "onnx/config.json"} <= files.keys()
    for name, data in files.items():
        assert b"site-packages" not in data and b".py" not in data, name
        assert str(Path.home()).encode() not in data and str(folder).encode() not in data, name


def mlp(width: int, out: int) -> nn.Sequential:
    first, last = nn.Linear(width, 24, bias=False), nn.Linear(24, out, bias=False)
    return nn.Sequential(first, nn.GELU(), last)


@pytest.mark.parametrize(
    ("name", "pooling", "projection"),
    [
        ("xlm-roberta", "last", nn.Linear(32, 16, bias=False)),
        ("mt5", "cls", None),
        ("m2m_100", "mean", mlp(32, 16)),
    ],
    ids=["xlm-roberta-last", "mt5-cls", "m2m_100-mlp"],
)
def test_every_kind_of_text_tower(
    name: str,
    pooling: Pooling,
    projection: nn.Module | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(onnx_graphs, "MOST_BYTES", 1000 if name == "xlm-roberta" else 10**9)
    tower = build_tower(name, pooling, projection)
    write_onnx(Source(tower), tmp_path)
    assert not (tmp_path / "onnx/vision_model.onnx").exists()
    assert difference(tmp_path, tower) <= 1e-5
    exact = load_onnx(str(tmp_path)).encode_texts(TEXTS)
    assert (load_onnx(str(tmp_path), "int8").encode_texts(TEXTS) * exact).sum(1).min() > 0.98
    if name == "xlm-roberta":  # heavy weights lie beside the graphs
        graph, weights = (tmp_path / f"onnx/text_model.onnx{end}" for end in ("", "_data"))
        assert graph.stat().st_size < weights.stat().st_size
        assert "onnx/text_model.onnx_data" in load_onnx(str(tmp_path)).facts["files"]


def test_a_missing_package_is_named(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if n == "onnxscript" else find(n)
    )
    with pytest.raises(UserError, match=r"`onnxscript`; install `mmalign\[export\]`"):
        write_onnx(source, tmp_path)


def test_the_loss_by_8_bits_is_what_the_files_give(folder: Path, tmp_path: Path) -> None:
    fp32, int8 = load_onnx(str(folder)), load_onnx(str(folder), "int8")
    cosine = (fp32.encode_texts(probes.TEXTS) * int8.encode_texts(probes.TEXTS)).sum(1)
    written = json.loads((folder / "onnx/config.json").read_text())["int8"]
    assert written["cosine"]["measured_on"].startswith(f"{len(probes.TEXTS)} probe texts")
    assert written["cosine"]["mean"] == pytest.approx(float(cosine.mean()), abs=1e-5)
    assert written["cosine"]["worst"] == pytest.approx(float(cosine.min()), abs=1e-5)
    assert written["cosine"]["worst"] < 1 and "recall@1" not in written
    graph = onnx.load(folder / "onnx/text_model_int8.onnx").graph
    vocabulary = tiny_tokenizer().vocabulary
    tables = {one.data_type for one in graph.initializer if list(one.dims) == [vocabulary, 32]}
    assert tables == {onnx.TensorProto.INT8}
    assert [node.op_type for node in graph.node].count("MatMulInteger") >= 7

    data = make_set(tmp_path / "set", 12)
    loss, shard_set = quantisation_loss(folder, data)["recall@1"], ShardSet(data)
    pairs = [shard_set.read(number) for number in range(len(shard_set))]
    images = fp32.encode_images(pair.image for pair in pairs)
    captions = [(n, c.text) for n, pair in enumerate(pairs) for c in pair.captions]
    found = (fp32.encode_texts([text for _, text in captions]) @ images.T).argmax(1)
    hits = np.mean([image == n for image, (n, _) in zip(found, captions, strict=True)])
    assert (loss["captions"], loss["pictures"]) == (len(captions), len(pairs))
    assert loss["fp32"] == pytest.approx(hits, abs=1e-5)
    assert loss["difference"] == pytest.approx(loss["int8"] - loss["fp32"], abs=2e-5)
    low, high = loss["difference_ci95"]
    assert low <= loss["difference"] <= high
    assert str(tmp_path) not in json.dumps(loss)  # onnx/config.json holds it
