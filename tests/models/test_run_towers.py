"""The towers of a run as `towers.json` keeps them: the same networks, without the place of their weights."""

import json
from pathlib import Path

import pytest
import torch
from export_cases import IMAGES, SMALL, TRUNKS, build_encoder, source_of
from frozen_towers import pretrained_model
from safetensors.torch import load_file
from tiny import MODEL, tiny_model, tiny_tokenizer

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.export.open_clip import write_open_clip
from mmalign.models.dual_encoder import DualEncoder, ModelConfig, build_dual_encoder
from mmalign.models.image_tower import without_origin
from mmalign.models.run_towers import FILE, read_towers, towers_of

PAIRS = [*((image, "bert") for image in IMAGES), *(("vit", trunk) for trunk in TRUNKS)]


def rebuilt(model: DualEncoder, config: ModelConfig, folder: Path) -> DualEncoder:
    """The model by way of the file, with the weights of the given one."""
    towers_of(model, {}).write(folder)
    towers = read_towers(folder)
    assert towers is not None
    torch.manual_seed(77)
    other = towers.build(config)
    other.load_state_dict(model.state_dict())
    return other.eval()


@torch.no_grad()
def outputs(model: DualEncoder) -> tuple[torch.Tensor, torch.Tensor]:
    size, generator = model.image_tower.size, torch.Generator().manual_seed(0)
    pixel_BCHW = torch.randint(0, 256, (2, 3, size, size), generator=generator).to(torch.uint8)
    token_NL, mask_NL = tiny_tokenizer()(["a red ball", "ein Hund und ein Ball"], 16)
    return model.encode_image(pixel_BCHW), model.encode_text(token_NL, mask_NL)


@pytest.mark.parametrize(("image", "trunk"), PAIRS)
def test_every_kind_of_tower_is_built_again(image: str, trunk: str, tmp_path: Path) -> None:
    encoder = build_encoder(image, trunk)
    other = rebuilt(encoder.model, encoder.config, tmp_path)
    for before, after in zip(outputs(encoder.model), outputs(other), strict=True):
        assert before.equal(after)
    assert other.image_tower.architecture == encoder.model.image_tower.architecture


def test_what_was_pretrained_is_built_after_its_folders_are_gone(tmp_path: Path) -> None:
    tree, places = pretrained_model(tmp_path)
    config = validate(ModelConfig, tree, "test")
    model = build_dual_encoder(config, tiny_tokenizer().vocabulary, 0).eval()
    for name, tensor in load_file(places[0]).items():
        assert model.image_tower.trunk.state_dict()[name].equal(tensor)
    for place in places:
        place.rename(place.with_name(f"{place.name}.gone"))
    (tmp_path / "run").mkdir()
    other = rebuilt(model, config, tmp_path / "run")
    assert str(tmp_path) not in (tmp_path / "run" / FILE).read_text()
    for before, after in zip(outputs(model), outputs(other), strict=True):
        assert before.equal(after)
    frozen = [not parameter.requires_grad for parameter in other.image_tower.parameters()]
    assert all(frozen) and all(p.requires_grad for p in other.text_tower.parameters())
    with pytest.raises(
        UserError, match=r"model\.image: timm cannot build `resnet10t` .*/resnet\.saf"
    ):
        build_dual_encoder(config, tiny_tokenizer().vocabulary, 0)


def test_a_network_that_an_export_describes_is_built_after_that_is_gone(tmp_path: Path) -> None:
    published = build_encoder("vit")
    (tmp_path / "export").mkdir()
    write_open_clip(source_of(published), tmp_path / "export", str(tmp_path / "export"))
    image = {"kind": "open_clip", "name": f"local-dir:{tmp_path}/export", "image_size": 64}
    config = validate(ModelConfig, {**MODEL, "image": image}, "test")
    model = build_dual_encoder(config, tiny_tokenizer().vocabulary, 0).eval()
    trunk = published.model.image_tower.trunk.state_dict()
    assert all(
        model.image_tower.state_dict()[f"trunk.trunk.{n}"].equal(t) for n, t in trunk.items()
    )
    (tmp_path / "export").rename(tmp_path / "gone")
    other = rebuilt(model, config, tmp_path)
    for before, after in zip(outputs(model), outputs(other), strict=True):
        assert before.equal(after)


def test_the_place_of_weights_is_no_part_of_a_network() -> None:
    places = {"pretrained_cfg_overlay": {"file": "/a"}, "checkpoint_path": "/b", "cache_dir": "/c"}
    image = {**MODEL["image"], "pretrained": True, "options": {**places, "global_pool": "max"}}
    found = without_origin(validate(ModelConfig, {**MODEL, "image": image}, "test").image)
    assert (found.pretrained, found.options) == (False, {"global_pool": "max"})
    tower = IMAGES["around_timm"]
    vision = {**tower["options"]["vision_cfg"], "timm_model_pretrained": True}
    options = {**tower["options"], "vision_cfg": vision, "pretrained_image_path": "/a"}
    tree = {**MODEL, "image": {**tower, "pretrained": "openai", "options": options}}
    found = without_origin(validate(ModelConfig, tree, "test").image)
    assert (found.pretrained, found.options) == (None, tower["options"])


def test_a_damaged_file_gets_one_sentence(tmp_path: Path) -> None:
    towers_of(tiny_model(), {}).write(tmp_path)
    tree = json.loads((tmp_path / FILE).read_text())
    for damaged in ("[]", "{", json.dumps({**tree, "text": 1})):
        (tmp_path / FILE).write_text(damaged)
        with pytest.raises(UserError, match=r"towers\.json: damaged"):
            read_towers(tmp_path)
    tree["text"]["model_type"] = "of-tomorrow"
    (tmp_path / FILE).write_text(json.dumps(tree))
    towers = read_towers(tmp_path)
    assert towers is not None
    with pytest.raises(UserError, match="this transformers cannot build it"):
        towers.build(validate(ModelConfig, MODEL, "test"))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("trunk", ["bert", "m2m_100"])
def test_weights_are_float32_whatever_a_folder_stores(
    dtype: torch.dtype, trunk: str, tmp_path: Path
) -> None:
    stored = build_encoder("vit", trunk).model.text_tower.trunk.to(dtype)
    stored.save_pretrained(tmp_path)
    assert {one.dtype for one in load_file(tmp_path / "model.safetensors").values()} == {dtype}
    tree = {**MODEL, "text": {"pretrained": str(tmp_path), "max_length": 16}}
    config = validate(ModelConfig, tree, "test")
    model = build_dual_encoder(config, tiny_tokenizer().vocabulary, 0)
    assert {one.dtype for one in model.state_dict().values() if one.is_floating_point()} == {
        torch.float32
    }
    (tmp_path / "run").mkdir()
    again = rebuilt(model, config, tmp_path / "run")
    assert {one.dtype for one in again.parameters()} == {torch.float32}
    fields = {"model_type": "bert", "hidden_size": 32, "dtype": str(dtype).removeprefix("torch.")}
    described = {"architecture": {**fields, **SMALL}}
    tree = {**MODEL, "text": {**described, "max_length": 16}}
    model = build_dual_encoder(validate(ModelConfig, tree, "test"), 50, 0)
    assert {one.dtype for one in model.parameters()} == {torch.float32}
