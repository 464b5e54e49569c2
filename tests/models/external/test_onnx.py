"""An exported ONNX folder is read back as a model that can be measured; a broken one says what is wrong."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_cases import build_encoder, source_of
from shard_sets import make_image
from tiny import TEXTS

from mmalign.core.errors import UserError
from mmalign.export.onnx import write_onnx
from mmalign.export.source import Source
from mmalign.models.encoder import Encoder
from mmalign.models.external.onnx import _padded, load_onnx

LONG = (*TEXTS, " ".join(TEXTS) * 3, "a", "")
PICTURES = [make_image(number, size=40) for number in range(5)]


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    torch.set_num_threads(1)
    return build_encoder()


@pytest.fixture(scope="module")
def exported(encoder: Encoder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("onnx")
    write_onnx(source_of(encoder), out)
    return out


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(exported, tmp_path / "model"))


def test_it_is_the_encoder_whatever_the_batches(encoder: Encoder, exported: Path) -> None:
    model = load_onnx(str(exported))
    for size in (1, 4, 256):
        texts, pictures = model.encode_texts(LONG, size), model.encode_images(PICTURES, size)
        assert np.abs(texts - encoder.encode_texts(LONG)).max() <= 1e-6
        assert np.abs(pictures - encoder.encode_images(PICTURES)).max() <= 1e-6
        assert texts.dtype == pictures.dtype == np.float32


def test_of_nothing_there_are_no_rows(exported: Path) -> None:
    model = load_onnx(str(exported))
    assert model.encode_texts([]).shape == model.encode_images([]).shape == (0, 16)


def test_8_bits_are_near_and_told_apart(exported: Path) -> None:
    fp32, int8 = load_onnx(str(exported)), load_onnx(str(exported), "int8")
    rows, near = fp32.encode_texts(LONG), int8.encode_texts(LONG)
    assert 0.99 < (rows * near).sum(1).min() < 1
    assert np.array_equal(fp32.encode_images(PICTURES), int8.encode_images(PICTURES))
    assert fp32.facts["sha256"] != int8.facts["sha256"]
    assert {"onnx/text_model_int8.onnx", "onnx/image_model.onnx"} == int8.facts["files"].keys()
    assert (int8.facts["kind"], int8.facts["precision"], int8.facts["step"]) == ("onnx", "int8", 0)
    assert load_onnx(str(exported)).facts == fp32.facts


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_the_tokenizers_own(exported: Path, side: str) -> None:
    model = load_onnx(str(exported))
    model.tokenizer.inner.padding_side = side
    ids = model.tokenizer.inner(list(LONG), truncation=True, max_length=32)["input_ids"]
    inputs = _padded(model.tokenizer, ids)
    token_NL, mask_NL = model.tokenizer(LONG, 32)
    assert np.array_equal(inputs["input_ids"], token_NL.numpy())
    assert np.array_equal(inputs["attention_mask"], mask_NL.numpy())


def test_a_text_tower_alone_takes_no_pictures(encoder: Encoder, tmp_path: Path) -> None:
    write_onnx(Source(source_of(encoder).tower), tmp_path)
    model = load_onnx(str(tmp_path))
    assert np.abs(model.encode_texts(LONG) - encoder.encode_texts(LONG)).max() <= 1e-6
    with pytest.raises(UserError, match="a text encoder without an image tower"):
        model.encode_images(PICTURES)


def test_a_missing_graph_is_named(folder: Path) -> None:
    (folder / "onnx/text_model_int8.onnx").unlink()
    load_onnx(str(folder))
    with pytest.raises(UserError, match=r"has no onnx/text_model_int8\.onnx"):
        load_onnx(str(folder), "int8")


def test_a_damaged_graph_is_one_sentence(folder: Path) -> None:
    graph = folder / "onnx/image_model.onnx"
    graph.write_bytes(graph.read_bytes()[:2000])
    with pytest.raises(UserError, match=r"image_model\.onnx: ONNX Runtime cannot read it"):
        load_onnx(str(folder))


def test_a_damaged_configuration_is_one_sentence(folder: Path) -> None:
    path = folder / "preprocessor_config.json"
    facts = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**facts, "image_mean": None}), encoding="utf-8")
    with pytest.raises(UserError, match=r"preprocessor_config\.json: `image_mean`"):
        load_onnx(str(folder))
    (folder / "onnx/config.json").write_text('{"max_length": 32}', encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.json: `embedding` must be there"):
        load_onnx(str(folder))
    (folder / "onnx/config.json").write_text('{"max_len', encoding="utf-8")
    with pytest.raises(UserError, match=r"config\.json: cannot be read"):
        load_onnx(str(folder))


def test_of_a_repository_only_the_files_in_use_are_fetched(
    exported: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.update(name=name, patterns=allow_patterns)
        return str(exported)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    model = load_onnx("someone/model", "int8")
    assert model.facts["path"] == asked["name"] == "someone/model"
    assert "onnx/text_model_int8.onnx" in asked["patterns"]
    assert "onnx/text_model.onnx" not in asked["patterns"]


def test_no_such_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="neither a folder nor a model on the hub"):
        load_onnx("someone/never-there")
    with pytest.raises(UserError, match=r"has no onnx/config\.json"):
        load_onnx(str(tmp_path))


def test_without_onnx_runtime(exported: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"install `mmalign\[export\]`"):
        load_onnx(str(exported))
