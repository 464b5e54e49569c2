"""Both towers leave as an open_clip folder and are the same encoder there, also after a move."""

import copy
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from tiny import MODEL, TEXTS, tiny_tokenizer

from mmalign.commit import verify
from mmalign.config import validate
from mmalign.data.preprocess import decode
from mmalign.data.tokenizer import Tokenizer
from mmalign.errors import UserError
from mmalign.evaluation.encoder import Encoder
from mmalign.evaluation.results import Results
from mmalign.export.open_clip import export_open_clip, load_open_clip
from mmalign.model.dual_encoder import ModelConfig, build_dual_encoder

NARROW = {"stem_width": 8, "channels": [16, 16, 32, 32]}
SMALL = {"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 48}
IMAGES: dict[str, dict[str, Any]] = {
    "resnet10t": {"kind": "timm", "name": "resnet10t", "image_size": 32, "options": NARROW},
    "vit": {"kind": "timm", "name": "test_vit", "image_size": 64},
    "open_clip": {
        "kind": "open_clip",
        "name": "ViT-B-32",
        "image_size": 64,
        "options": {
            "embed_dim": 24,
            "vision_cfg": {"layers": 1, "width": 64, "patch_size": 32},
            "text_cfg": {"layers": 1, "width": 64, "heads": 2},
        },
    },
}
TRUNKS: dict[str, dict[str, Any]] = {
    "bert": {"model_type": "bert", "hidden_size": 32, **SMALL},
    "xlm-roberta": {"model_type": "xlm-roberta", "hidden_size": 32, **SMALL},
    "mt5": {
        **{"model_type": "mt5", "d_model": 32, "d_ff": 48, "d_kv": 16},
        **{"num_layers": 1, "num_heads": 2},
    },
    "m2m_100": {
        **{"model_type": "m2m_100", "d_model": 32, "encoder_layers": 1, "decoder_layers": 1},
        **{"encoder_attention_heads": 2, "encoder_ffn_dim": 48},
    },
}


def build_encoder(
    image: str = "resnet10t", trunk: str = "bert", pooling: str = "mean", **changes: Any
) -> Encoder:
    text = {**MODEL["text"], "architecture": TRUNKS[trunk], "pooling": pooling}
    tree = {**MODEL, "image": IMAGES[image], "text": text, **changes}
    config = validate(ModelConfig, tree, "test")
    tokenizer = tiny_tokenizer()
    torch.manual_seed(5)
    model = build_dual_encoder(config, tokenizer.vocabulary, tokenizer.padding_id)
    for (
        module
    ) in model.modules():  # statistics as after training: a fresh batch norm changes nothing
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    return Encoder(model, config, tokenizer, {"path": "/somewhere", "step": 3, "sha256": "0" * 64})


def pictures(size: int, count: int = 3) -> list[bytes]:
    rng = np.random.default_rng(1)
    encoded = []
    for _ in range(count):
        pixels = rng.integers(0, 256, (size, size + 9, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        encoded.append(file.getvalue())
    return encoded


@torch.inference_mode()
def differences(encoder: Encoder, loaded: tuple[Any, Any, Any]) -> tuple[float, float]:
    """The largest difference of a component, of pictures and of texts."""
    model, preprocess, tokenize = loaded
    encoded = pictures(3 * encoder.model.image_tower.size)
    image_BCHW = torch.stack([preprocess(decode(data)) for data in encoded])
    image_BD = model.encode_image(image_BCHW, normalize=True).numpy()
    text_ND = model.encode_text(tokenize(list(TEXTS)), normalize=True).numpy()
    return (
        float(np.abs(image_BD - encoder.encode_images(encoded)).max()),
        float(np.abs(text_ND - encoder.encode_texts(TEXTS)).max()),
    )


def load_by_name(folder: Path) -> tuple[Any, Any, Any]:
    name = f"local-dir:{folder}"
    model, preprocess = open_clip.create_model_from_pretrained(name)
    return model.eval(), preprocess, open_clip.get_tokenizer(name)


@pytest.mark.parametrize(
    ("image", "trunk", "pooling"),
    [
        ("resnet10t", "bert", "mean"),
        ("resnet10t", "bert", "cls"),
        ("vit", "xlm-roberta", "mean"),
        ("open_clip", "mt5", "mean"),
        ("resnet10t", "m2m_100", "mean"),
    ],
)
def test_open_clip_loads_the_same_encoder_from_the_folder(
    image: str, trunk: str, pooling: str, tmp_path: Path
) -> None:
    encoder = build_encoder(image, trunk, pooling)
    export_open_clip(encoder, tmp_path / "out", None, {})
    assert verify(tmp_path / "out")["format"] == "open_clip"
    assert max(differences(encoder, load_by_name(tmp_path / "out"))) <= 1e-6


def test_a_folder_that_was_moved_loads_as_its_card_says(tmp_path: Path) -> None:
    encoder = build_encoder()
    export_open_clip(encoder, tmp_path / "out", None, {})
    (tmp_path / "out").rename(tmp_path / "moved")
    with pytest.raises(Exception, match="out"):  # open_clip looks where the folder stood
        load_by_name(tmp_path / "moved")
    assert max(differences(encoder, load_open_clip(tmp_path / "moved"))) <= 1e-6

    card = (tmp_path / "moved/README.md").read_text(encoding="utf-8")
    start = card.index('folder = "path')
    code = card[start : card.index("```", start)]
    spoken: dict[str, Any] = {"open_clip": open_clip}
    exec(code.replace("path/to/this/folder", str(tmp_path / "moved")), spoken)
    loaded = (spoken["model"].eval(), spoken["preprocess"], spoken["tokenizer"])
    assert max(differences(encoder, loaded)) <= 1e-6


def test_a_folder_for_the_hub_names_nothing_of_the_machine(tmp_path: Path) -> None:
    encoder = build_encoder()
    results = Results(suite="s", model={"path": "/home/someone/run", "sha256": "0" * 64})
    results.add("retrieval/scenes/no/text_to_image/recall@1", 0.25, count=40)
    export_open_clip(encoder, tmp_path / "out", results, {"seed": 1}, "mit", "someone/model")
    for path in (tmp_path / "out").iterdir():
        if path.suffix in (".json", ".md"):
            text = path.read_text(encoding="utf-8")
            assert str(tmp_path) not in text and "/home/" not in text, path.name
    config = json.loads((tmp_path / "out/open_clip_config.json").read_text(encoding="utf-8"))
    assert config["model_cfg"]["text_cfg"]["hf_model_name"] == "someone/model"
    assert config["model_cfg"]["vision_cfg"]["timm_model_name"] == "hf-hub:someone/model"
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert 'name = "hf-hub:someone/model"\n' in card and "library_name: open_clip" in card
    assert max(differences(encoder, load_open_clip(tmp_path / "out"))) <= 1e-6


def test_temperature_and_bias_of_the_scores_come_along(tmp_path: Path) -> None:
    encoder = build_encoder(logit_bias=-10.0, temperature=0.1)
    export_open_clip(encoder, tmp_path / "out", None, {})
    model, _, _ = load_by_name(tmp_path / "out")
    assert model.logit_scale.exp().item() == pytest.approx(10)
    assert model.logit_bias.item() == -10


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"pooling": "last"}, "cannot pool the `last` token"),
        ({"trunk": "modernbert"}, "cannot hold a text tower of type `modernbert`"),
    ],
)
def test_what_open_clip_cannot_express_is_refused(
    changes: dict[str, str], reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    modern = {"model_type": "modernbert", "hidden_size": 32, **SMALL}
    monkeypatch.setitem(TRUNKS, "modernbert", modern)
    with pytest.raises(UserError, match=reason):
        export_open_clip(build_encoder(**changes), tmp_path / "out", None, {})
    assert list(tmp_path.iterdir()) == []


def test_what_open_clip_computes_otherwise_is_found_and_refused(tmp_path: Path) -> None:
    encoder = build_encoder()
    inner = copy.deepcopy(encoder.tokenizer.inner)
    inner.pad_token = "</s>"  # open_clip would hide the end of every text together with the padding
    encoder.tokenizer = Tokenizer(inner)
    encoder.model.text_tower.trunk.config.pad_token_id = inner.pad_token_id
    with pytest.raises(UserError, match=r"model\.text: open_clip .* computes other vectors"):
        export_open_clip(encoder, tmp_path / "out", None, {})
    assert list(tmp_path.iterdir()) == []
