"""Every method is the plain one where it does nothing, and changes nothing but gradients."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mmalign.core.config import Section, validate
from mmalign.core.errors import UserError
from mmalign.text.heads.features import ClassificationModel, Pairs
from mmalign.text.robust.method import MethodConfig, PlainConfig
from mmalign.text.tasks.task import Example

LAYERS = ("embedding", 1, "last")
CASES: list[tuple[Pairs, str | int]] = [("joint", "embedding"), ("joint", "last"), ("separate", 1)]
PLAIN = PlainConfig(kind="plain")

Build = Callable[[Pairs], ClassificationModel]


class Holder(Section):
    method: MethodConfig


def method(**fields: Any) -> MethodConfig:
    return validate(Holder, {"method": fields}, "x.yaml").method


def weak(layer: str | int, passes: int) -> list[dict[str, Any]]:
    """The methods that add noise, at strength zero."""
    ascent = {"layer": layer, "radius": 0.0, "step_size": 0.1, "steps": passes}
    view = {"kind": "uniform", "layer": layer, "epsilon": 0.3}
    return [
        {"kind": "rs_rp", "layer": layer, "epsilon": 0.0, "draws": passes},
        *({"kind": "pgd", **ascent, "norm": norm} for norm in ("linf", "l2", "l2_sequence")),
        {"kind": "pgd", **ascent, "random_start": True},
        {"kind": "freelb", **ascent},
        {"kind": "consistency", "weight": 0.0, "view": view},
    ]


def strong(layer: str | int) -> list[dict[str, Any]]:
    ascent = {"layer": layer, "radius": 0.5, "step_size": 0.2, "steps": 2}
    view = {"kind": "uniform", "layer": layer, "epsilon": 0.3}
    return [
        {"kind": "plain"},
        {"kind": "rs_rp", "layer": layer, "epsilon": 0.3, "draws": 2},
        {"kind": "pgd", **ascent},
        {"kind": "freelb", **ascent},
        {"kind": "consistency", "view": view},
    ]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


@pytest.mark.parametrize(("pairs", "layer"), CASES)
def test_one_pass_at_strength_zero_is_plain_to_the_bit(
    model_of: Build, gradients: Any, examples: list[Example], pairs: Pairs, layer: str | int
) -> None:
    model = model_of(pairs)
    batch = model.collate(examples)
    plain = gradients(model, lambda: PLAIN.backward(model, batch, seeded()))
    assert any(one.abs().sum() > 0 for one in plain[1][:5])
    for fields in weak(layer, passes=1):
        config = method(**fields)
        loss, found = gradients(model, lambda: config.backward(model, batch, seeded()))  # noqa: B023
        assert loss == plain[0], fields
        assert all(map(torch.equal, found, plain[1])), fields


@pytest.mark.parametrize(("pairs", "layer"), CASES)
def test_passes_at_strength_zero_see_the_dropout_of_the_plain_one(
    model_of: Build, gradients: Any, examples: list[Example], pairs: Pairs, layer: str | int
) -> None:
    model = model_of(pairs).double().train()  # so that sums of thirds are no matter of rounding
    batch = model.collate(examples)

    def run(config: MethodConfig) -> tuple[float, list[torch.Tensor], torch.Tensor]:
        torch.manual_seed(7)
        loss, found = gradients(model, lambda: config.backward(model, batch, seeded()))
        return loss, found, torch.get_rng_state()

    plain_loss, plain, state = run(PLAIN)
    for fields in weak(layer, passes=3):
        loss, found, state_after = run(method(**fields))
        assert loss == pytest.approx(plain_loss, abs=1e-9), fields
        for one, expected in zip(found, plain, strict=True):
            torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-9)
        assert torch.equal(state, state_after), "the next batch would have another dropout"


@pytest.mark.parametrize(("pairs", "layer"), CASES)
def test_gradients_add_up_and_nothing_else_changes(
    model_of: Build, gradients: Any, examples: list[Example], pairs: Pairs, layer: str | int
) -> None:
    model = model_of(pairs)
    batch = model.collate(examples)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    _, plain = gradients(model, lambda: PLAIN.backward(model, batch, seeded()))
    for fields in strong(layer):
        config = method(**fields)
        _, once = gradients(model, lambda: config.backward(model, batch, seeded()))  # noqa: B023
        config.backward(model, batch, seeded())
        for one, parameter in zip(once, model.parameters(), strict=True):
            if parameter.grad is not None:
                torch.testing.assert_close(parameter.grad, 2 * one)
        if fields["kind"] != "plain":
            assert not all(map(torch.allclose, once, plain)), "the method does nothing"
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.tower.trunk.modules())


def test_a_tower_that_is_not_trained_gets_no_gradient(
    model_of: Build, examples: list[Example]
) -> None:
    model = model_of("joint")
    model.tower.requires_grad_(False)
    batch = model.collate(examples)
    for fields in [one for layer in LAYERS for one in strong(layer)]:
        model.zero_grad()
        method(**fields).backward(model, batch, seeded())
        assert all(one.grad is None for one in model.tower.parameters()), fields
        assert model.head.output.weight.grad.abs().sum() > 0, fields


@pytest.mark.parametrize("pairs", ["joint", "separate"])
def test_other_texts_at_strength_zero_are_plain_to_the_bit(
    model_of: Build, gradients: Any, examples: list[Example], pairs: Pairs, tmp_path: Path
) -> None:
    (tmp_path / "empty.json").write_text("{}")
    (tmp_path / "en-de.tsv").write_text("en\ttranslation\nball\tKugel\n")
    model = model_of(pairs)
    batch = model.collate(examples)
    plain = gradients(model, lambda: PLAIN.backward(model, batch, seeded()))
    for weight, view in (
        (0.0, {"kind": "code_switch", "dictionaries": str(tmp_path), "token_ratio": 1.0}),
        (1.0, {"kind": "code_switch", "dictionaries": str(tmp_path), "sentence_ratio": 0.0}),
        (1.0, {"kind": "rs_da", "neighbours": str(tmp_path / "empty.json")}),
    ):
        config = method(kind="consistency", weight=weight, view=view)
        loss, found = gradients(model, lambda: config.backward(model, batch, seeded()))  # noqa: B023
        assert loss == plain[0], view
        assert all(map(torch.equal, found, plain[1])), view


def test_an_unknown_method_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"method\.kind.*pgd"):
        method(kind="pdg")
