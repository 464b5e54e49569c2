"""Training moves words to their translations, below the layer and nowhere else."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lexical_cases import LAYERS, write_decoder, write_dictionaries, write_encoder

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.evaluation.lexical_probe import probe
from mmalign.evaluation.lexicon import Lexicon, read_lexicon
from mmalign.models.load import load_text_encoder
from mmalign.models.lora import LoraConfig
from mmalign.models.text_encoder import TextEncoder
from mmalign.results.results import Results
from mmalign.text.lexical.config import LexicalInjectionConfig
from mmalign.text.lexical.train import right_answers, train
from mmalign.text.lora import add_lora


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_dictionaries(tmp_path_factory.mktemp("words"))


def config(folder: Path, **fields: Any) -> LexicalInjectionConfig:
    tree = {
        "lexicon": {"name": "toy", "folder": str(folder)},
        "epochs": 4,
        "batch_size": 16,
        "lr": 3e-3,
        "warmup_steps": 2,
        **fields,
    }
    return validate(LexicalInjectionConfig, tree, "test")


def metric(tower: TextEncoder, lexicon: Lexicon, layer: int, name: str) -> float:
    results = Results(suite="", model={})
    probe(tower, lexicon, results)
    return results.metrics[f"lexical/toy/mean/{layer}/trained/{name}"]


@pytest.mark.parametrize(
    "loss",
    [{"kind": "hinge", "margin": 0.1}, {"kind": "infonce", "temperature": 0.1}],
    ids=lambda one: one["kind"],
)
def test_trained_words_come_together_at_the_layer(
    loss: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    settings = config(folder, loss=loss, epochs=8, lr=1e-2)
    lexicon = read_lexicon(settings.lexicon)
    tower = load_text_encoder(str(write_decoder(tmp_path)))
    names = set(tower.state_dict())
    before = {name: metric(tower, lexicon, 2, name) for name in ("similarity", "similarity_gain")}
    history = train(tower, lexicon, 2, settings, seed=0)
    assert metric(tower, lexicon, 2, "similarity") > before["similarity"] + 0.3
    if loss["kind"] == "infonce":  # the hardest negative alone moves these few words to one point
        assert metric(tower, lexicon, 2, "similarity_gain") > before["similarity_gain"] + 0.2
    assert history["steps"] == 8 * -(-sum(len(o.trained) for o in lexicon.lists.values()) // 16)
    assert set(tower.state_dict()) == names and not tower.training


@pytest.mark.parametrize("adapters", ["up_to_layer", "all"])
def test_only_the_blocks_up_to_the_layer_change(
    folder: Path, tmp_path: Path, adapters: str
) -> None:
    """With adapters everywhere too: what lies above the layer gets no gradient."""
    settings = config(folder, adapters=adapters, epochs=1, weight_decay=0.0)
    tower = load_text_encoder(str(write_encoder(tmp_path)))
    before = {name: one.clone() for name, one in tower.state_dict().items()}
    train(tower, read_lexicon(settings.lexicon), 2, settings, seed=0)
    changed = {
        name.split("layer.")[1][0]
        for name, one in tower.state_dict().items()
        if not torch.equal(one, before[name])
    }
    assert changed == {"0", "1"}


def test_adapters_stand_in_the_first_blocks_only(tmp_path: Path) -> None:
    for write, targets, ends in (
        (write_encoder, "query_value", ("query", "value")),
        (write_decoder, "query_value", ("q_proj", "v_proj")),
        (
            write_decoder,
            None,
            ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        ),
    ):
        for blocks in (1, LAYERS):
            tower = load_text_encoder(str(write(tmp_path / f"{write.__name__}{targets}{blocks}")))
            add_lora(tower, LoraConfig(rank=2, targets=targets), blocks)
            named = [name for name, one in tower.named_parameters() if one.requires_grad]
            layers = {tuple(name.partition(".lora_")[0].rsplit(".", 3)) for name in named}
            assert len(layers) == blocks * len(ends)
            assert {layer[-1] for layer in layers} == set(ends)
            assert all(f".{block}." in " ".join(named) for block in range(blocks))
            assert not any(
                f"ayer.{blocks}." in name or f"ayers.{blocks}." in name for name in named
            )


def test_a_model_without_known_queries_is_one_sentence(tmp_path: Path) -> None:
    tower = load_text_encoder(str(write_encoder(tmp_path)))
    for block in tower.trunk.encoder.layer:
        own = block.attention.self
        own.asking, own.telling = own.query, own.value
        del own.query, own.value
    with pytest.raises(UserError, match=r"which layers make queries and values .* name some of"):
        add_lora(tower, LoraConfig(targets="query_value"), 1)


def test_the_same_seed_gives_the_same_weights_and_another_one_others(
    folder: Path, tmp_path: Path
) -> None:
    settings = config(folder, epochs=1)
    lexicon = read_lexicon(settings.lexicon)
    model = str(write_encoder(tmp_path))
    trained = []
    for seed in (0, 0, 1):
        tower = load_text_encoder(model)
        train(tower, lexicon, 1, settings, seed)
        trained.append(tower.trunk.encoder.layer[0].attention.self.query.weight)
    assert torch.equal(trained[0], trained[1]) and not torch.equal(trained[0], trained[2])


def test_what_else_is_right_in_a_batch() -> None:
    batch = [("big", "X"), ("large", "Y"), ("big", "Z"), ("red", "X"), ("Y", "W")]
    known = {*batch, ("large", "X")}
    expected = [
        # big    large  big    red    Y       (English)
        [True, True, True, True, False],  # X: its own, known, the same English, the same foreign
        [False, True, False, False, True],  # Y: its own; an English word that is written alike
        [True, False, True, False, False],  # Z
        # X again: both big are English of an equal foreign word
        [True, True, True, True, False],
        [False, False, False, False, True],
    ]
    assert right_answers(batch, known).tolist() == expected


def test_a_loss_that_is_no_number_is_one_sentence(folder: Path, tmp_path: Path) -> None:
    settings = config(folder, lr=1e30, epochs=3, warmup_steps=0)
    tower = load_text_encoder(str(write_encoder(tmp_path)))
    with pytest.raises(UserError, match=r"the loss is nan at step \d+; lower `lr`"):
        train(tower, read_lexicon(settings.lexicon), 1, settings, seed=0)
