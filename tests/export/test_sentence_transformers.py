"""A text tower, or both towers, leave as a sentence-transformers folder and are the same encoder there."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_cases import build_encoder, files_of, source_of
from probe_cases import odd_texts, opaque_images, upright
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from tiny import MODEL
from transformers import AutoModel, AutoModelForTextEncoding, AutoTokenizer

from mmalign.core.errors import UserError
from mmalign.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from mmalign.export.probes import TEXTS
from mmalign.export.sentence_transformers import write_router, write_sentence_transformers
from mmalign.export.source import Source
from mmalign.models.load import load_model
from mmalign.models.text_encoder import TextEncoder

MAX_LENGTH = MODEL["text"]["max_length"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """As in a run: trained on captions, saved, and loaded from its folder."""
    folder = tmp_path_factory.mktemp("run") / "tokenizer"
    train_tokenizer([text for text in TEXTS if len(text) < 200], 600).save(folder)
    return load_tokenizer(folder)


@pytest.mark.parametrize(
    ("name", "pooling", "loader"),
    [
        ("bert", "cls", AutoModel),
        ("xlm-roberta", "mean", AutoModel),
        ("xlm-roberta", "last", AutoModel),
        ("mt5", "mean", AutoModelForTextEncoding),
    ],
)
def test_the_folder_is_the_same_encoder_in_both_libraries(
    name: str,
    pooling: str,
    loader: Any,
    tokenizer: Tokenizer,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    encoder = build_encoder("resnet10t", name, pooling, tokenizer)
    write_sentence_transformers(source_of(encoder), tmp_path)
    caplog.clear()
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs = SentenceTransformer(str(tmp_path), device="cpu")
    said = caplog.text + "".join(capfd.readouterr())
    assert not [word for word in ("newly", "MISSING", "UNEXPECTED", "Tanh") if word in said], said
    assert theirs.max_seq_length == MAX_LENGTH
    texts = odd_texts()
    lengths = tokenizer(texts, 1000)[1].sum(1)
    assert lengths.max() > MAX_LENGTH and lengths.min() < MAX_LENGTH
    assert np.abs(theirs.encode(texts) - encoder.encode_texts(texts)).max() <= 1e-6

    # transformers loads the trunk alone, and twice the same.
    trunk, keys = loader.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(keys.values()), keys
    ours, again = encoder.model.text_tower.trunk.state_dict(), theirs[0].auto_model.state_dict()
    for key, tensor in trunk.state_dict().items():
        assert torch.equal(tensor, again[key])
        assert key not in ours or torch.equal(tensor, ours[key])
    assert ours.keys() <= trunk.state_dict().keys() == again.keys()
    tokens = AutoTokenizer.from_pretrained(tmp_path)(
        texts, padding=True, truncation=True, return_tensors="pt"
    )
    assert torch.equal(tokens["input_ids"], tokenizer(texts, MAX_LENGTH)[0])


def mlp(width: int, out: int) -> torch.nn.Sequential:
    first, last = torch.nn.Linear(width, 22, bias=False), torch.nn.Linear(22, out, bias=False)
    return torch.nn.Sequential(first, torch.nn.GELU(), last)


@pytest.mark.parametrize(
    ("projection", "unit_length", "kinds"),
    [
        (None, False, ["Transformer", "Pooling"]),
        (torch.nn.Linear(32, 12), False, ["Transformer", "Pooling", "Dense"]),
        (mlp(32, 12), True, ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]),
    ],
)
def test_a_tower_of_any_head_is_the_same_there(
    projection: torch.nn.Module | None, unit_length: bool, kinds: list[str], tmp_path: Path
) -> None:
    encoder = build_encoder()
    trunk = encoder.model.text_tower.trunk
    tower = TextEncoder(trunk, encoder.tokenizer, "mean", projection, unit_length, MAX_LENGTH)
    write_sentence_transformers(Source(tower), tmp_path)
    theirs = SentenceTransformer(str(tmp_path), device="cpu")
    assert [type(module).__name__ for module in theirs] == kinds
    assert np.abs(theirs.encode(list(TEXTS)) - tower.encode(TEXTS)).max() <= 2e-6


def test_the_encoder_half_that_cannot_be_loaded_alone_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="encoder half of a `m2m_100` model"):
        write_sentence_transformers(source_of(build_encoder(trunk="m2m_100")), tmp_path)


@pytest.mark.parametrize(
    ("image", "trunk", "pooling", "changes"),
    [
        ("resnet10t", "xlm-roberta", "last", {}),
        ("open_clip", "mt5", "mean", {"text_projection": "mlp"}),
        ("resnet10t", "bert", "mean", {"text_projection": "none", "embedding": 32}),
    ],
)
def test_a_router_encodes_texts_and_images_as_we_do(
    image: str, trunk: str, pooling: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    encoder = build_encoder(image, trunk, pooling, **changes)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_router(source_of(encoder), tmp_path / name)
    files = files_of(tmp_path / "one")
    assert files == files_of(tmp_path / "two")
    assert not [name for name, data in files.items() if str(tmp_path).encode() in data]
    (tmp_path / "one").rename(tmp_path / "moved")
    model = SentenceTransformer(str(tmp_path / "moved"), device="cpu")
    texts, encoded = odd_texts(), opaque_images()
    ours_ND, ours_BD = encoder.encode_texts(texts), encoder.encode_images(encoded)
    np.testing.assert_allclose(model.encode(texts), ours_ND, atol=1e-6)
    np.testing.assert_allclose(model.encode(upright(encoded)), ours_BD, atol=1e-6)
    found = load_model(str(tmp_path / "moved"))
    assert found.facts["kind"] == "sentence-transformers"
    np.testing.assert_allclose(found.encode_texts(TEXTS), encoder.encode_texts(TEXTS), atol=1e-6)
    np.testing.assert_allclose(found.encode_images(encoded[:5]), ours_BD[:5], atol=1e-6)

    # The layout is the one that the library itself writes.
    model.save(str(tmp_path / "theirs"))
    for name in ("router_config.json", "modules.json"):
        assert json.loads(files[name]) == json.loads((tmp_path / "theirs" / name).read_text())
    for path in (tmp_path / "theirs").rglob("*.safetensors"):
        ours, theirs = (
            load_file(tmp_path / "two" / path.relative_to(tmp_path / "theirs")),
            load_file(path),
        )
        assert ours.keys() == theirs.keys()  # no weight of theirs was drawn at random
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
