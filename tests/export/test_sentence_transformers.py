"""A text tower leaves as a sentence-transformers folder and is the same encoder there."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from export_cases import build_encoder, source_of
from sentence_transformers import SentenceTransformer
from tiny import MODEL
from transformers import AutoModel, AutoModelForTextEncoding, AutoTokenizer

from mmalign.core.errors import UserError
from mmalign.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from mmalign.export.sentence_transformers import write_sentence_transformers
from mmalign.export.source import Source
from mmalign.models.encoder import Encoder
from mmalign.models.text_encoder import TextEncoder

SENTENCES = [
    "a small dog runs over the green field",
    "ein kleiner Hund rennt über die grüne Wiese",
    "un petit chien court sur le pré vert",
    "маленькая собака бежит по зелёному полю",
    "ένας μικρός σκύλος τρέχει στο πράσινο λιβάδι",
    "كلب صغير يركض في الحقل الأخضر",
    "کلب کوچکی در چمن سبز می‌دود",
    "כלב קטן רץ בשדה הירוק",
    "एक छोटा कुत्ता हरे मैदान में दौड़ता है",
    "একটি ছোট কুকুর সবুজ মাঠে দৌড়ায়",
    "สุนัขตัวเล็กวิ่งบนทุ่งหญ้าสีเขียว",
    "一只小狗在绿色的田野上奔跑",
    "小さな犬が緑の野原を走る",
    "작은 개가 푸른 들판을 달린다",
    "პატარა ძაღლი მწვანე მინდორში დარბის",
    "mbwa mdogo anakimbia kwenye uwanja wa kijani",
]
TEXTS = [
    *SENTENCES,
    " ".join(SENTENCES[:4]),  # longer than the tower takes
    "  spaces\tand\nlines  ",
    "ﬁne ＦＵＬＬ width, emoji 🐕 and letters never seen: ꦲꦏ",
    "",
]
MAX_LENGTH = MODEL["text"]["max_length"]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """As in a run: trained on captions, saved, and loaded from its folder."""
    folder = tmp_path_factory.mktemp("run") / "tokenizer"
    train_tokenizer(SENTENCES, 300).save(folder)
    return load_tokenizer(folder)


def write(encoder: Encoder, folder: Path) -> None:
    folder.mkdir()
    write_sentence_transformers(source_of(encoder), folder)


@pytest.mark.parametrize(
    ("name", "pooling"),
    [
        ("bert", "cls"),
        ("bert", "last"),
        ("xlm-roberta", "mean"),
        ("xlm-roberta", "last"),
        ("mt5", "mean"),
        ("mt5", "cls"),
    ],
)
def test_the_folder_is_the_same_encoder_in_the_other_library(
    name: str,
    pooling: str,
    tokenizer: Tokenizer,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    encoder = build_encoder("resnet10t", name, pooling, tokenizer)
    write(encoder, tmp_path / "out")
    caplog.clear()
    capfd.readouterr()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        theirs = SentenceTransformer(str(tmp_path / "out"), device="cpu")
    said = caplog.text + "".join(capfd.readouterr())
    assert not [word for word in ("newly", "MISSING", "UNEXPECTED", "Tanh") if word in said], said
    assert [type(module).__name__ for module in theirs] == [
        "Transformer",
        "Pooling",
        "Dense",
        "Normalize",
    ]
    assert theirs.max_seq_length == MAX_LENGTH
    lengths = tokenizer(TEXTS, 1000)[1].sum(1)
    assert lengths.max() > MAX_LENGTH and lengths.min() < MAX_LENGTH
    difference = np.abs(theirs.encode(TEXTS) - encoder.encode_texts(TEXTS))
    assert difference.max() <= 1e-6


@pytest.mark.parametrize(
    ("name", "loader"),
    [("bert", AutoModel), ("xlm-roberta", AutoModel), ("mt5", AutoModelForTextEncoding)],
)
def test_transformers_loads_the_trunk_alone_and_twice_the_same(
    name: str, loader: Any, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    encoder = build_encoder(trunk=name, tokenizer=tokenizer)
    write(encoder, tmp_path / "out")
    first, keys = loader.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(keys.values()), keys
    second = SentenceTransformer(str(tmp_path / "out"), device="cpu")[0].auto_model
    assert first.state_dict().keys() == second.state_dict().keys()
    for tensor, other in zip(
        first.state_dict().values(), second.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, other)
    tower = encoder.model.text_tower
    for tensor_name, tensor in tower.trunk.state_dict().items():
        assert torch.equal(first.state_dict()[tensor_name], tensor)
    tokens = AutoTokenizer.from_pretrained(tmp_path / "out")(
        TEXTS, padding=True, truncation=True, return_tensors="pt"
    )
    ours_NL, mask_NL = tokenizer(TEXTS, MAX_LENGTH)
    assert torch.equal(tokens["input_ids"], ours_NL)
    with torch.inference_mode():
        state_NLF = first(input_ids=ours_NL, attention_mask=mask_NL).last_hidden_state
        expected_NLF = tower.trunk(input_ids=ours_NL, attention_mask=mask_NL).last_hidden_state
    assert torch.allclose(state_NLF, expected_NLF, atol=1e-6)


def mlp(width: int, out: int) -> torch.nn.Sequential:
    between = (width + out) // 2
    return torch.nn.Sequential(
        torch.nn.Linear(width, between, bias=False),
        torch.nn.GELU(),
        torch.nn.Linear(between, out, bias=False),
    )


@pytest.mark.parametrize(
    ("projection", "unit_length", "kinds"),
    [
        (None, False, ["Transformer", "Pooling"]),
        (torch.nn.Linear(32, 12), False, ["Transformer", "Pooling", "Dense"]),
        (mlp(32, 12), True, ["Transformer", "Pooling", "Dense", "Dense", "Normalize"]),
    ],
)
def test_a_tower_of_any_head_is_the_same_there(
    projection: torch.nn.Module | None,
    unit_length: bool,
    kinds: list[str],
    tokenizer: Tokenizer,
    tmp_path: Path,
) -> None:
    trunk = build_encoder(tokenizer=tokenizer).model.text_tower.trunk
    tower = TextEncoder(trunk, tokenizer, "mean", projection, unit_length, MAX_LENGTH)
    write_sentence_transformers(Source(tower), tmp_path)
    theirs = SentenceTransformer(str(tmp_path), device="cpu")
    assert [type(module).__name__ for module in theirs] == kinds
    assert np.abs(theirs.encode(TEXTS) - tower.encode(TEXTS)).max() <= 2e-6


def test_the_encoder_half_that_cannot_be_loaded_alone_is_refused(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    encoder = build_encoder(trunk="m2m_100", tokenizer=tokenizer)
    with pytest.raises(UserError, match="encoder half of a `m2m_100` model"):
        write(encoder, tmp_path / "out")
