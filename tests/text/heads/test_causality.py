"""Event causality from documents to saved weights: losses, learning, seeds, refusals."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from causality_cases import alone, crowded, document, overlapping, storm, tiny_tower
from safetensors.torch import load_file

from mmalign.core.config import validate
from mmalign.core.errors import UserError
from mmalign.models.encoder import weights_sha256
from mmalign.results.protocol import sentence
from mmalign.text.causality.config import CausalityConfig
from mmalign.text.finetune import FinetuneConfig, protocol
from mmalign.text.fit import build_model, fit
from mmalign.text.fit_config import FitConfig
from mmalign.text.heads.causality import CausalityModel
from mmalign.text.measure import TestConfig as MeasureConfig
from mmalign.text.measure import check_tests
from mmalign.text.scores import chance, score
from mmalign.text.tasks.task import Example, Task

THINGS = ("ball", "dog", "cat", "chair", "Hund", "Ball")
SMALL = {"width": 16, "heads": 2, "dropout": 0.0}


def rule(count: int, lang: str = "en", seed: int = 0) -> list[Example]:
    """`X green Y` is causal and `X red Y` is not, whatever X and Y are."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        a, b, c, d = random.permutation(THINGS)[:4].tolist()
        first, second = random.permutation(["green", "red"]).tolist()
        sentences = (f"the {a} {first} {b} .", f"the {c} {second} {d} .")
        pairs = ((0, 1, first == "green"), (2, 3, second == "green"), (0, 3, False))
        found.append(document(f"{lang}-{seed}-{number}", sentences, (a, b, c, d), pairs, lang))
    return found


def task_of(**fields: Any) -> Task:
    parts = {"train": rule(40), "dev": {}, "tests": {"de": rule(24, "de", 1)}, **fields}
    return Task("toy", "event_causality", "en", (), candidates={}, **parts)


def config_of(**fields: Any) -> FitConfig:
    tree = {
        "trainable": "all",
        "epochs": 10,
        "batch_size": 16,
        "lr": 3e-3,
        "head_lr": 1e-2,
        "causality": SMALL,
        "precision": "fp32",
        **fields,
    }
    return validate(FitConfig, tree, "test")


def contrast(tmp_path: Path, **fields: Any) -> dict[str, Any]:
    lines = ("en\ttranslation", "green\tverde", "dog\tHund", "ball\tBall", "the\tder")
    (tmp_path / "en-de.tsv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    view = {"kind": "code_switch", "dictionaries": str(tmp_path), "sentence_ratio": 1.0}
    return {**SMALL, "contrast": {"view": view, **fields}}


def f1(model: Any, examples: list[Example]) -> float:
    return float(score("event_causality", examples, model.predict(examples))["f1"])


@pytest.mark.parametrize(("graph", "least"), [(True, 0.9), (False, 0.7)])
def test_it_learns_a_rule_that_needs_reading(tmp_path: Path, graph: bool, least: float) -> None:
    causality = contrast(tmp_path) if graph else SMALL
    config = config_of(causality={**causality, "graph": graph}, epochs=8)
    fitted = fit(tiny_tower(), task_of(dev={"en": rule(8, "en", 2)}), config, seed=0)
    chance_f1 = chance("event_causality", rule(24, "de", 1))
    assert f1(fitted.model, rule(24, "de", 1)) > least > chance_f1 == pytest.approx(2 / 3, abs=0.05)
    assert max(fitted.history["dev"]) > least


def test_a_seed_decides_everything(tmp_path: Path) -> None:
    tower = tiny_tower()
    config = config_of(causality={**contrast(tmp_path), "dropout": 0.2}, epochs=1)

    def weights(seed: int) -> str:
        torch.rand(3)  # whatever was drawn before
        return weights_sha256(fit(tower, task_of(train=rule(20)), config, seed).model)

    first = weights(0)
    assert weights(0) == first != weights(1)


def test_the_contrast_moves_what_the_labels_alone_do_not(tmp_path: Path) -> None:
    config = validate(CausalityConfig, contrast(tmp_path, pair=0.5), "test")
    torch.manual_seed(0)
    model = CausalityModel(tiny_tower(), config)
    examples = rule(4)
    model.prepare(examples)
    batch = model.collate(examples)
    plain = model.losses(model(batch), batch).mean()
    total = model.loss_with_view(batch, np.random.default_rng(0))
    assert total > plain
    total.backward()
    for layer in model.head.into_contrast.values():
        assert layer.weight.grad.abs().sum() > 0


def test_views_are_switched_from_the_language_of_their_document(tmp_path: Path) -> None:
    model = CausalityModel(tiny_tower(), validate(CausalityConfig, contrast(tmp_path), "test"))
    model.prepare([*rule(2, "sw"), *rule(2), *rule(2, "de")])
    assert {lang: sorted(tables) for lang, tables in model.tables.items()} == {
        "sw": [],
        "en": ["de"],
        "de": ["en"],
    }
    batch = model.collate([*rule(1, "sw"), *rule(1, "de"), *rule(1)])
    assert model.loss_with_view(batch, np.random.default_rng(0)).isfinite()
    with pytest.raises(UserError, match="no dictionary leads from `sw` to"):
        model.prepare(rule(2, "sw"))


def test_the_loss_of_a_document_is_the_weighted_mean_over_its_pairs() -> None:
    model = CausalityModel(
        tiny_tower(), CausalityConfig(width=16, heads=2, causal_weight=3.0)
    ).eval()
    batch = model.collate([storm(), alone(), overlapping()])
    logits = model(batch)
    losses = model.losses(logits, batch)
    log_P2 = logits.log_softmax(-1)
    expected = -(3 * log_P2[0, 1] + log_P2[1, 0] + log_P2[2, 0] + log_P2[3, 0]) / 4
    torch.testing.assert_close(losses[0], expected)
    assert losses[1].item() == 0
    assert losses.shape == (3,)
    sure = torch.nn.functional.one_hot(batch.target, 2).float()
    assert model.decode(sure, batch) == [(True, False, False, False), (), (False, True, True)]


def test_predictions_do_not_depend_on_the_batch() -> None:
    torch.manual_seed(0)
    model = CausalityModel(tiny_tower(), CausalityConfig(width=16, heads=2))
    examples = [*rule(34), storm(), alone(), crowded(12), overlapping()]  # more than one batch
    together = model.predict(examples)
    assert together == [model.predict([one])[0] for one in examples]
    assert [len(one) for one in together[-4:]] == [4, 0, 66, 3]  # type: ignore[arg-type]
    batch = model.collate([crowded(60)])  # a document much longer than the tower
    assert len(batch.example_N) > 5
    assert batch.tokens.token_NL.shape[1] <= model.tower.max_length
    assert len(batch.target) == 1770


def test_it_is_saved_and_built_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = CausalityModel(tiny_tower(), validate(CausalityConfig, contrast(tmp_path), "test"))
    model.save(tmp_path)
    about = json.loads((tmp_path / "head.json").read_text())
    assert about["kind"] == "CausalityModel"
    again = CausalityModel(tiny_tower(), validate(CausalityConfig, about["causality"], "test"))
    again.head.load_state_dict(load_file(tmp_path / "head.safetensors"))
    batch = model.collate([storm(), overlapping()])
    assert torch.equal(model.eval()(batch), again.eval()(batch))


def test_noise_on_the_states_goes_with_it() -> None:
    config = config_of(epochs=1, method={"kind": "rs_rp", "epsilon": 0.1})
    assert np.isfinite(fit(tiny_tower(), task_of(), config, seed=0).history["train_loss"][0])


def test_the_protocol_says_what_was_trained(tmp_path: Path) -> None:
    tree = config_of(epochs=1, causality=contrast(tmp_path)).model_dump(mode="json")
    config = validate(FinetuneConfig, {**tree, "task": {"name": "toy", "folder": "x"}}, "test")
    fitted = fit(tiny_tower(), task_of(), config, seed=0)
    words = sentence(protocol(task_of(), config, fitted))
    assert (
        "a graph of phrases, sentences, statements and event pairs (2 layers of width 16)" in words
    )
    assert "a view code-switched into all languages of the dictionaries" in words
    assert "A pair has no direction; asked are the pairs that the files list." in words


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"augment": {"kind": "rs_da", "neighbours": "x"}}, "`augment` moves the events"),
        ({"hidden": 8}, "`hidden` is for classification, .*, not event_causality"),
    ],
)
def test_what_does_not_fit_is_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit(tiny_tower(), task_of(), config_of(**fields), seed=0)


def test_other_refusals(tmp_path: Path) -> None:
    noise = {"kind": "rs_rp", "epsilon": 0.1}
    both = config_of(causality=contrast(tmp_path), method=noise)
    with pytest.raises(UserError, match=r"rs_rp does not go with `causality\.contrast`"):
        fit(tiny_tower(), task_of(), both, seed=0)
    labels = [Example(str(i), "en", (word,), word) for i, word in enumerate(THINGS)]
    other = Task("t", "classification", "en", THINGS, labels, {}, {"de": labels}, {})
    with pytest.raises(UserError, match="`causality` is for event_causality, not classification"):
        fit(tiny_tower(), other, config_of(), seed=0)
    with pytest.raises(UserError, match=r"`heads` \(3\) must divide `width` \(16\)"):
        config_of(causality={"width": 16, "heads": 3})
    tests = validate(MeasureConfig, {"perturbations": [{"kind": "characters", "severity": 2}]}, "t")
    with pytest.raises(UserError, match="would move the events of event_causality"):
        check_tests(task_of(), tests)
    absent = contrast(tmp_path)
    absent["contrast"]["view"]["languages"] = ["sw"]
    with pytest.raises(UserError, match="no dictionary of `sw`"):
        fit(tiny_tower(), task_of(), config_of(causality=absent), seed=0)


def test_without_torch_geometric_the_graph_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch_geometric.nn", None)
    with pytest.raises(UserError, match=r"causality\.graph: needs torch_geometric; install it"):
        fit(tiny_tower(), task_of(), config_of(), seed=0)
    CausalityModel(tiny_tower(), CausalityConfig(graph=False))
    monkeypatch.undo()
    model = build_model(tiny_tower(), task_of(), "joint", None)
    assert isinstance(model, CausalityModel) and model.config == CausalityConfig()
