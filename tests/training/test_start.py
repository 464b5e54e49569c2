"""A run folder belongs to one configuration, also where an older version wrote it."""

from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_run

from mmalign.config import read_yaml, validate, write_yaml
from mmalign.errors import UserError
from mmalign.training.run_config import RunConfig
from mmalign.training.start import open_run


def config(out: Path, **changes: Any) -> RunConfig:
    tree = {
        **read_yaml(out / "config.yaml"),
        "name": "tiny",
        "steps": 4,
        "batch_size": 4,
        "data": {"train": ["nowhere"]},
        "optimizer": {"lr": 1e-3},
        **changes,
    }
    return validate(RunConfig, tree, "test")


def test_fields_that_an_older_version_did_not_know_mean_their_defaults(tmp_path: Path) -> None:
    out = tiny_run(tmp_path)
    now = config(out)
    tree = now.model_dump(mode="json")
    del tree["model"]["text_projection"], tree["optimizer"]["cooldown_steps"]
    (out / "config.yaml").write_text(write_yaml(tree), encoding="utf-8")
    open_run(now, out)
    assert read_yaml(out / "config.yaml")["model"]["text_projection"] == "linear"


def test_another_run_is_refused(tmp_path: Path) -> None:
    out = tiny_run(tmp_path)
    now = config(out)
    tree = now.model_dump(mode="json")
    del tree["model"]["text_projection"]
    (out / "config.yaml").write_text(write_yaml(tree), encoding="utf-8")
    other = now.model_copy(
        update={"model": now.model.model_copy(update={"text_projection": "mlp"})}
    )
    with pytest.raises(UserError, match=r"holds another run, its `model\.text_projection` differs"):
        open_run(other, out)
    (out / "config.yaml").write_text(write_yaml({**tree, "stepz": 4}), encoding="utf-8")
    with pytest.raises(UserError, match="holds another run"):
        open_run(other, out)
