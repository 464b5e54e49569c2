"""A folder of ONNX graphs is a model that can be measured; a broken one says what is wrong.

The graphs are written by hand here: that an export equals its run is proved in `tests/export/test_onnx.py`.
"""

import io
import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from shard_sets import make_image
from tiny import TEXTS, tiny_tokenizer

from mmalign.core.errors import UserError
from mmalign.models.external.onnx import load_onnx

LONG = (*TEXTS, " ".join(TEXTS) * 3, "a", "")
IMAGES = [make_image(number, size=16) for number in range(5)]
RNG = np.random.default_rng(0)
TABLE, WEIGHT = (RNG.normal(size=shape).astype(np.float32) for shape in ((300, 16), (3, 16)))


def write_graph(path: Path, inputs: dict[str, int], nodes: list[Any], **tensors: Any) -> None:
    output = nodes[-1].output[0]
    values = [helper.make_tensor_value_info(n, kind, None) for n, kind in inputs.items()]
    made = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
    stored = [numpy_helper.from_array(np.asarray(t), name) for name, t in tensors.items()]
    graph = helper.make_graph(nodes, "g", values, [made], stored)
    opset = [helper.make_opsetid("", 18)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), path)


def write_text_graph(path: Path, table: np.ndarray) -> None:
    """The sum of the tokens' rows of a table."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"]),
        helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["mask", "last"], ["weights"]),
        helper.make_node("Mul", ["rows", "weights"], ["read"]),
        helper.make_node("ReduceSum", ["read", "one"], ["text_embeds"], keepdims=0),
    ]
    inputs = dict.fromkeys(("input_ids", "attention_mask"), TensorProto.INT64)
    write_graph(path, inputs, nodes, table=table, last=np.array([-1]), one=np.array([1]))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "onnx").mkdir(parents=True)
    tiny_tokenizer().save(folder)
    write_text_graph(folder / "onnx/text_model.onnx", TABLE)
    write_text_graph(folder / "onnx/text_model_int8.onnx", TABLE.round(1))
    nodes = [
        helper.make_node("ReduceMean", ["pixel_values", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weight"], ["image_embeds"]),
    ]
    tensors = {"axes": np.array([2, 3]), "weight": WEIGHT}
    inputs = {"pixel_values": TensorProto.FLOAT}
    write_graph(folder / "onnx/vision_model.onnx", inputs, nodes, **tensors)
    (folder / "onnx/config.json").write_text('{"max_length": 32, "embedding": 16}')
    facts = {"size": {"height": 16}, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.3, 0.4]}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))
    return folder


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_vectors_are_those_of_the_graphs_whatever_the_batches(folder: Path) -> None:
    model = load_onnx(str(folder))
    ids = tiny_tokenizer().inner(list(LONG), truncation=True, max_length=32)["input_ids"]
    texts_ND = unit(np.stack([TABLE[one].sum(0) for one in ids]))
    opened = [np.asarray(Image.open(io.BytesIO(one)).convert("RGB")) for one in IMAGES]
    pixels = (np.stack(opened) / 255 - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.4]
    images_ND = unit(pixels.mean((1, 2)) @ WEIGHT)
    for size in (1, 4, 256):
        texts, images = model.encode_texts(LONG, size), model.encode_images(IMAGES, size)
        np.testing.assert_allclose(texts, texts_ND, atol=1e-6)
        np.testing.assert_allclose(images, images_ND, atol=1e-5)
        assert texts.dtype == images.dtype == np.float32
    assert model.encode_texts([]).shape == model.encode_images([]).shape == (0, 16)


def test_8_bits_are_another_text_tower_with_facts_of_its_own(folder: Path) -> None:
    fp32, int8 = load_onnx(str(folder)), load_onnx(str(folder), "int8")
    rows, near = fp32.encode_texts(LONG), int8.encode_texts(LONG)
    assert 0.99 < (rows * near).sum(1).min() < 1
    assert np.array_equal(fp32.encode_images(IMAGES), int8.encode_images(IMAGES))
    assert fp32.facts["sha256"] != int8.facts["sha256"]
    assert {"onnx/text_model_int8.onnx", "onnx/vision_model.onnx"} == int8.facts["files"].keys()
    assert (int8.facts["kind"], int8.facts["precision"], int8.facts["step"]) == ("onnx", "int8", 0)
    assert load_onnx(str(folder)).facts == fp32.facts


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_the_tokenizers_own(side: str, folder: Path) -> None:
    model, seen = load_onnx(str(folder)), []
    model.tokenizer.inner.padding_side = side

    def run(names: list[str], inputs: dict[str, np.ndarray]) -> list[np.ndarray]:
        seen.append(inputs)
        return [np.zeros((len(LONG), 16), np.float32)]

    model._text_graph = SimpleNamespace(run=run)
    model.encode_texts(LONG)
    expected = model.tokenizer.inner(LONG, padding=True, truncation=True, max_length=32)
    for name in ("input_ids", "attention_mask"):
        assert seen[0][name].dtype == np.int64
        assert sorted(seen[0][name].tolist()) == sorted(expected[name])  # the batch is sorted


def test_the_image_model_of_version_0_1_is_read_under_its_name(folder: Path) -> None:
    before = load_onnx(str(folder)).encode_images(IMAGES)
    (folder / "onnx/vision_model.onnx").rename(folder / "onnx/image_model.onnx")
    model = load_onnx(str(folder))
    assert np.array_equal(model.encode_images(IMAGES), before)
    assert "onnx/image_model.onnx" in model.facts["files"]


def test_a_text_tower_alone_takes_no_images(folder: Path) -> None:
    (folder / "onnx/vision_model.onnx").unlink()
    (folder / "preprocessor_config.json").unlink()
    model = load_onnx(str(folder))
    assert model.encode_texts(LONG).shape == (len(LONG), 16)
    with pytest.raises(UserError, match="a text encoder without an image tower"):
        model.encode_images(IMAGES)


def test_missing_and_damaged_files_get_one_sentence(folder: Path) -> None:
    def fails(message: str, precision: Any = "fp32") -> None:
        with pytest.raises(UserError, match=message) as failure:
            load_onnx(str(folder), precision)
        assert "\n" not in str(failure.value)

    (folder / "onnx/text_model_int8.onnx").unlink()
    fails(r"has no onnx/text_model_int8\.onnx", "int8")
    facts = folder / "preprocessor_config.json"
    facts.write_text(json.dumps({**json.loads(facts.read_text()), "image_mean": None}))
    fails(r"preprocessor_config\.json: `image_mean`")
    graph = folder / "onnx/vision_model.onnx"
    graph.write_bytes(graph.read_bytes()[:100])
    fails(r"vision_model\.onnx: ONNX Runtime cannot read it")
    for text, message in (
        ('{"max_length": 32}', "`embedding` is missing"),
        ("{", "cannot be read"),
    ):
        (folder / "onnx/config.json").write_text(text)
        fails(rf"config\.json: {message}")
    shutil.rmtree(folder / "onnx")
    fails(r"has no onnx/config\.json")


def test_of_a_repository_only_the_files_in_use_are_fetched(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.update(name=name, patterns=allow_patterns)
        return str(folder)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    model = load_onnx("someone/model", "int8")
    assert model.facts["path"] == asked["name"] == "someone/model"
    assert "onnx/text_model_int8.onnx" in asked["patterns"]
    assert "onnx/text_model.onnx" not in asked["patterns"]


def test_no_such_place_and_no_onnx_runtime(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="neither a folder nor a model on the hub"):
        load_onnx("someone/never-there")
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"install `mmalign\[export\]`"):
        load_onnx(str(folder))
