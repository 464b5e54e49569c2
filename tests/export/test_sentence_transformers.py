"""A text tower leaves as a sentence-transformers folder and is the same encoder there."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SentenceTransformer
from transformers import AutoModel, AutoModelForTextEncoding, AutoTokenizer

from mmalign.commit import verify
from mmalign.data.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from mmalign.errors import UserError
from mmalign.evaluation.encoder import Encoder
from mmalign.evaluation.results import Results
from mmalign.export.sentence_transformers import export_sentence_transformers
from mmalign.model.dual_encoder import ModelConfig, build_dual_encoder
from mmalign.model.image_tower import TimmTower
from mmalign.model.text_tower import Pooling, TextTowerConfig

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
MAX_LENGTH = 16
SMALL = {"num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 48}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", "hidden_size": 32, **SMALL},
    "xlm-roberta": {"model_type": "xlm-roberta", "hidden_size": 32, **SMALL},
    "mt5": {
        "model_type": "mt5",
        "d_model": 32,
        "d_ff": 48,
        "d_kv": 16,
        "num_layers": 2,
        "num_heads": 2,
    },
    "m2m_100": {"model_type": "m2m_100", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1},
}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """As in a run: trained on captions, saved, and loaded from its folder."""
    folder = tmp_path_factory.mktemp("run") / "tokenizer"
    train_tokenizer(SENTENCES, 300).save(folder)
    return load_tokenizer(folder)


def build_encoder(name: str, pooling: Pooling, tokenizer: Tokenizer) -> Encoder:
    text = TextTowerConfig(architecture=ARCHITECTURES[name], pooling=pooling, max_length=MAX_LENGTH)
    image = TimmTower(kind="timm", name="test_vit", image_size=160)
    config = ModelConfig(image=image, text=text, embedding=24)
    torch.manual_seed(7)
    model = build_dual_encoder(config, tokenizer.vocabulary, tokenizer.padding_id)
    return Encoder(model, config, tokenizer, {"path": "/somewhere", "step": 12, "sha256": "0" * 64})


def some_results() -> Results:
    results = Results(suite="retrieval", model={"path": "/home/someone/run", "sha256": "0" * 64})
    for code in ("pt-BR", "no", "mean"):
        for direction in ("text_to_image", "image_to_text"):
            results.add(f"retrieval/scenes/{code}/{direction}/recall@1", 0.25, count=40)
    results.add("alignment/scenes/no-pt-BR/bitext@1", 0.5, count=40)
    results.add("alignment/scenes/mean/bitext@1", 0.5, count=40)
    results.add("text/animals/no/clean/accuracy", 0.75, count=8)
    results.add("text/animals/no/typos/accuracy", 0.5, count=8)
    results.protocol["retrieval"] = "Every caption against every picture."
    return results


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
    pooling: Pooling,
    tokenizer: Tokenizer,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    encoder = build_encoder(name, pooling, tokenizer)
    export_sentence_transformers(encoder, tmp_path / "out", None, {})
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
    encoder = build_encoder(name, "mean", tokenizer)
    export_sentence_transformers(encoder, tmp_path / "out", None, {})
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


def test_the_folder_holds_safetensors_only_and_nothing_of_the_machine(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    encoder = build_encoder("xlm-roberta", "mean", tokenizer)
    tokenizer(["padded", "and cut, long text"], 4)
    config = {"data": {"shards": "/home/someone/shards"}, "hub_token": "hf_abcdefghij"}
    export_sentence_transformers(encoder, tmp_path / "out", some_results(), config)
    export_sentence_transformers(encoder, tmp_path / "again", some_results(), config)
    first, second = verify(tmp_path / "out"), verify(tmp_path / "again")
    del first["files"]["README.md"], second["files"]["README.md"]  # each bears its folder's name
    assert first == second and first["step"] == 12
    files = [path for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert not [path for path in files if path.suffix in (".bin", ".pt", ".pkl", ".py")]
    for path in (path for path in files if path.suffix in (".json", ".md")):
        text = path.read_text(encoding="utf-8")
        for trace in ("is_local", "local_files_only", "/home/", str(tmp_path), "hf_abcdefghij"):
            assert trace not in text, (path.name, trace)
    fast = json.loads((tmp_path / "out/tokenizer.json").read_text(encoding="utf-8"))
    assert fast["truncation"] is None and fast["padding"] is None
    assert set(load_file(tmp_path / "out/2_Dense/model.safetensors")) == {"linear.weight"}


def test_the_encoder_half_that_cannot_be_loaded_alone_is_refused(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    encoder = build_encoder("m2m_100", "mean", tokenizer)
    with pytest.raises(UserError, match="encoder half of a `m2m_100` model"):
        export_sentence_transformers(encoder, tmp_path / "out", None, {})
    assert list(tmp_path.iterdir()) == []


def test_the_card_says_what_was_measured_and_no_more(tokenizer: Tokenizer, tmp_path: Path) -> None:
    from huggingface_hub import ModelCard

    encoder = build_encoder("bert", "mean", tokenizer)
    config = {"name": "tiny", "seed": 3, "sources": ["https://me:pw@example.org/x"]}
    export_sentence_transformers(encoder, tmp_path / "bare", None, config)
    bare = ModelCard.load(tmp_path / "bare/README.md")
    assert "## Results" not in bare.text and bare.data.language is None
    assert bare.data.license is None and bare.data.library_name == "sentence-transformers"
    assert "name: tiny\nseed: 3" in bare.text and "me:pw" not in bare.text

    export_sentence_transformers(encoder, tmp_path / "full", some_results(), config, "apache-2.0")
    full = ModelCard.load(tmp_path / "full/README.md")
    assert full.data.language == ["no", "pt"] and full.data.license == "apache-2.0"
    assert full.data.to_dict()["language_bcp47"] == ["no", "pt-BR"]
    assert "| pt-BR | 25.0 |  | 25.0 |  | 40 |" in full.text
    assert "| no | 75.0 | 50.0 | 8 |" in full.text
    assert "| mean | 50.0 | 40 |" in full.text
    assert "Every caption against every picture." in full.text
