"""Both towers leave as ONNX graphs, compute the same there, and say what 8-bit weights cost."""

import importlib.util
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export_cases import build_encoder, source_of
from shard_sets import make_set
from tiny import TEXTS, tiny_tokenizer
from torch import nn

from mmalign.core.commit import write_json
from mmalign.core.errors import UserError
from mmalign.data.shards.reader import ShardSet
from mmalign.export import onnx_files
from mmalign.export.onnx import write_onnx
from mmalign.export.onnx_int8 import quantisation_loss
from mmalign.export.probes import probe_images, probe_texts
from mmalign.export.source import Source
from mmalign.models.external.onnx import load_onnx
from mmalign.models.pooling import Pooling
from mmalign.models.text_encoder import TextEncoder
from mmalign.models.text_tower import TextTowerConfig, build_text_tower

SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
M2M = {
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_ffn_dim": 48,
    "max_position_embeddings": 40,
}
TRUNKS: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", "hidden_size": 32, "max_position_embeddings": 24, **SMALL},
    "xlm-roberta": {"model_type": "xlm-roberta", "hidden_size": 32, **SMALL},
    "mt5": {
        **{"model_type": "mt5", "d_model": 32, "d_ff": 48, "d_kv": 16},
        **{"num_layers": 2, "num_heads": 2},
    },
    "m2m_100": {"model_type": "m2m_100", "d_model": 32, "encoder_attention_heads": 2, **M2M},
}


@pytest.fixture(scope="module")
def source() -> Source:
    torch.set_num_threads(1)
    return source_of(build_encoder())


@pytest.fixture(scope="module")
def folder(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx")
    write_onnx(source, out)
    return out


def build_tower(name: str, pooling: Pooling, projection: nn.Module | None = None) -> TextEncoder:
    tokenizer = tiny_tokenizer()
    torch.manual_seed(3)
    config = TextTowerConfig(architecture=TRUNKS[name], pooling=pooling, max_length=20)
    trunk = build_text_tower(config, tokenizer.vocabulary, tokenizer.padding_id).trunk
    facts = {"path": "somewhere", "step": 0, "sha256": "0" * 64}
    return TextEncoder(trunk, tokenizer, pooling, projection, projection is not None, 20, facts)


def files_of(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def unit(rows: np.ndarray) -> np.ndarray:
    unit_rows: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit_rows


def test_the_graphs_compute_what_the_towers_do(source: Source, folder: Path) -> None:
    assert source.encoder is not None
    model = load_onnx(str(folder))
    texts, pictures = probe_texts(), probe_images()
    assert np.abs(model.encode_texts(texts) - source.encoder.encode_texts(texts)).max() <= 1e-5
    theirs, ours = model.encode_images(pictures), source.encoder.encode_images(pictures)
    assert np.abs(theirs - ours).max() <= 1e-5


def test_the_graphs_say_what_goes_in_and_out(folder: Path) -> None:
    for name, inputs, output in (
        ("text_model", {"input_ids": ["batch", "sequence"]}, ["batch", 16]),
        ("text_model_int8", {"attention_mask": ["batch", "sequence"]}, ["batch", 16]),
        ("image_model", {"pixel_values": ["batch", 3, 32, 32]}, ["batch", 16]),
    ):
        session = onnxruntime.InferenceSession(folder / "onnx" / f"{name}.onnx")
        shapes = {one.name: one.shape for one in session.get_inputs()}
        assert inputs.items() <= shapes.items()
        assert [one.shape for one in session.get_outputs()] == [output]
        versions = {
            one.domain: one.version for one in onnx.load(folder / f"onnx/{name}.onnx").opset_import
        }
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
    assert files_of(tmp_path) == files_of(folder)
    assert all(torch.equal(one, before[name]) for name, one in tower.state_dict().items())
    assert tower.trunk.config._attn_implementation == attention
    assert logging.root.handlers == handlers
    assert capfd.readouterr() == ("", "")
    assert [str(one.message) for one in recwarn] == []


def test_nothing_of_this_machine_is_in_the_files(folder: Path) -> None:
    files = files_of(folder)
    assert {"tokenizer.json", "preprocessor_config.json", "onnx/config.json"} <= files.keys()
    for name, data in files.items():
        assert b"site-packages" not in data and b".py" not in data, name
        assert str(Path.home()).encode() not in data and str(folder).encode() not in data, name


@pytest.mark.parametrize(
    ("name", "pooling", "projection"),
    [
        ("bert", "cls", None),
        ("xlm-roberta", "last", nn.Linear(32, 16, bias=False)),
        ("mt5", "mean", None),
        (
            "m2m_100",
            "mean",
            nn.Sequential(nn.Linear(32, 24, bias=False), nn.GELU(), nn.Linear(24, 16, bias=False)),
        ),
    ],
    ids=["bert-cls", "xlm-roberta-last", "mt5-mean", "m2m_100-mlp"],
)
def test_every_kind_of_text_tower(
    name: str, pooling: Pooling, projection: nn.Module | None, tmp_path: Path
) -> None:
    tower = build_tower(name, pooling, projection)
    write_onnx(Source(tower), tmp_path)
    assert not (tmp_path / "onnx/image_model.onnx").exists()
    ours = unit(tower.encode(TEXTS))
    assert np.abs(load_onnx(str(tmp_path)).encode_texts(TEXTS) - ours).max() <= 1e-5
    assert (load_onnx(str(tmp_path), "int8").encode_texts(TEXTS) * ours).sum(1).min() > 0.98


def test_heavy_weights_lie_beside_the_graphs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(onnx_files, "MOST_BYTES", 1000)
    tower = build_tower("xlm-roberta", "mean")
    write_onnx(Source(tower), tmp_path)
    graph, weights = (tmp_path / f"onnx/text_model.onnx{end}" for end in ("", "_data"))
    assert graph.stat().st_size < weights.stat().st_size
    model = load_onnx(str(tmp_path))
    assert "onnx/text_model.onnx_data" in model.facts["files"]
    assert np.abs(model.encode_texts(TEXTS) - unit(tower.encode(TEXTS))).max() <= 1e-5


def test_a_graph_that_is_off_is_refused(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    strip: Callable[[Any], None] = onnx_files._strip

    def damage(model: Any) -> None:
        strip(model)
        for one in model.graph.initializer:
            value = onnx.numpy_helper.to_array(one)
            if value.dtype == np.float32 and value.ndim == 2:
                off = np.where(value > 0, value * 1.001, value).astype(np.float32)
                one.CopyFrom(onnx.numpy_helper.from_array(off, one.name))

    monkeypatch.setattr(onnx_files, "_strip", damage)
    with pytest.raises(UserError, match=r"model\.text: ONNX Runtime computes other vectors"):
        write_onnx(source, tmp_path)


def test_a_package_that_lacks_is_named(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda n: None if n == "onnxscript" else find(n)
    )
    with pytest.raises(UserError, match=r"`onnxscript`; install `mmalign\[export\]`"):
        write_onnx(source, tmp_path)


def test_the_loss_of_8_bits_is_what_the_files_give(folder: Path) -> None:
    loss = quantisation_loss(folder, texts=TEXTS)
    cosine = (
        load_onnx(str(folder)).encode_texts(TEXTS)
        * load_onnx(str(folder), "int8").encode_texts(TEXTS)
    ).sum(1)
    assert loss["cosine"]["measured_on"] == f"{len(TEXTS)} texts"
    assert loss["cosine"]["mean"] == pytest.approx(float(cosine.mean()), abs=1e-5)
    assert loss["cosine"]["worst"] == pytest.approx(float(cosine.min()), abs=1e-5)
    assert loss["cosine"]["worst"] < 1
    written = json.loads((folder / "onnx/config.json").read_text())["int8"]
    assert written["cosine"]["measured_on"].startswith("200 probe texts")
    assert "recall@1" not in written


def test_8_bits_are_kept_where_the_weights_are(folder: Path) -> None:
    graph = onnx.load(folder / "onnx/text_model_int8.onnx").graph
    vocabulary = tiny_tokenizer().vocabulary
    tables = {one.data_type for one in graph.initializer if list(one.dims) == [vocabulary, 32]}
    assert tables == {onnx.TensorProto.INT8}
    assert [node.op_type for node in graph.node].count("MatMulInteger") >= 7


def test_recall_with_8_bits_where_there_are_data(folder: Path, tmp_path: Path) -> None:
    data = make_set(tmp_path / "set", 12)
    loss = quantisation_loss(folder, texts=TEXTS, data=data)["recall@1"]
    shard_set, model = ShardSet(data), load_onnx(str(folder))
    pairs = [shard_set.read(number) for number in range(len(shard_set))]
    images = model.encode_images(pair.image for pair in pairs)
    captions = [(n, c.text) for n, pair in enumerate(pairs) for c in pair.captions]
    found = (model.encode_texts([text for _, text in captions]) @ images.T).argmax(1)
    right = np.mean([place == n for place, (n, _) in zip(found, captions, strict=True)])
    assert (loss["captions"], loss["pictures"]) == (len(captions), len(pairs))
    assert loss["fp32"] == pytest.approx(right, abs=1e-5)
    assert loss["difference"] == pytest.approx(loss["int8"] - loss["fp32"], abs=2e-5)
    low, high = loss["difference_ci95"]
    assert low <= loss["difference"] <= high
    write_json(tmp_path / "loss.json", loss)  # as onnx/config.json holds it
    assert str(tmp_path) not in (tmp_path / "loss.json").read_text(encoding="utf-8")
