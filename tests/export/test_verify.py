"""An export is loaded by the other library in a clean process; what differs or does not belong is found."""

import ast
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from export_cases import bare_tokenizer, build_encoder, source_of
from probe_cases import odd_texts

from mmalign.core.errors import UserError
from mmalign.export import loaders, verify
from mmalign.export.build import write_files
from mmalign.export.probes import TEXTS
from mmalign.export.sentence_transformers import write_router, write_sentence_transformers
from mmalign.export.source import Source
from mmalign.export.transformers import write_transformers
from mmalign.export.verify import (
    LOADERS,
    Loader,
    check_files,
    checked_difference,
    largest_difference,
    run_loader,
    verify_export,
)
from mmalign.models.text_encoder import TextEncoder

SPY = """
import json, os, sys
import numpy as np
np.savez(sys.argv[4], seen=json.dumps({
    "environment": dict(os.environ), "folder": os.getcwd(), "path": sys.path, "isolated": sys.flags.isolated,
}))
"""


def spy(folder: Path, code: str, monkeypatch: pytest.MonkeyPatch) -> Loader:
    """A loader that does something else than to load."""
    (folder / "spy.py").write_text(code, encoding="utf-8")
    monkeypatch.setattr(verify, "PROGRAM", folder / "spy.py")
    return Loader("numpy", "the spy")


@pytest.mark.usefixtures("in_this_process")
def test_two_libraries_agree_on_one_folder_that_was_moved(tmp_path: Path) -> None:
    """`test_build.py` has the other formats."""
    source = source_of(build_encoder(pooling="cls"))
    (tmp_path / "out").mkdir()
    write_router(source, tmp_path / "out")
    write_transformers(source, tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "moved")
    formats = ["sentence-transformers-router", "transformers"]
    differences = verify_export(source, tmp_path / "moved", formats)
    assert differences.keys() == {
        "sentence-transformers (Router)",
        "transformers (VisionTextDualEncoder)",
    }
    assert max(differences.values()) <= 1e-6


@pytest.mark.usefixtures("in_this_process")
@pytest.mark.parametrize("name", ["sentence-transformers", "open_clip", "onnx"])
def test_a_tokenizer_without_special_tokens_can_be_exported(name: str, tmp_path: Path) -> None:
    """It makes no token of an empty text, of which each library makes something else."""
    source = source_of(build_encoder(tokenizer=bare_tokenizer()))
    write_files(source, tmp_path, [name], "someone/model")
    differences = verify_export(source, tmp_path, [name])
    assert max(differences.values()) <= 1e-5


@pytest.mark.parametrize("trunk", ["xlm-roberta", "mt5"])
@torch.no_grad()
def test_the_trunk_alone_has_our_states(trunk: str, tmp_path: Path) -> None:
    tower = source_of(build_encoder(trunk=trunk)).tower
    write_sentence_transformers(Source(tower), tmp_path)
    theirs = loaders.transformers(tmp_path, odd_texts()[::5], tmp_path)["states"].numpy()
    ours = TextEncoder(tower.trunk, tower.tokenizer, max_length=32).encode(odd_texts()[::5])
    assert largest_difference(ours, theirs) <= 1e-6


def test_the_process_is_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "mine"))
    seen = json.loads(str(run_loader(spy(tmp_path, SPY, monkeypatch), tmp_path, tmp_path)["seen"]))
    assert "hf_0123456789" not in str(seen)
    assert str(tmp_path) not in seen["path"]
    assert str(Path.cwd()) not in [*seen["path"], seen["folder"]]
    assert seen["isolated"] == 1
    assert seen["environment"]["HF_HUB_OFFLINE"] == "1"
    assert seen["environment"]["HF_HOME"].startswith(seen["folder"])
    assert not Path(seen["folder"]).exists()


def test_a_library_that_fails_is_one_sentence_without_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code = "raise OSError('no such file, asked with hf_0123456789')"
    with pytest.raises(
        UserError, match=r"the spy: cannot load the export \(OSError: no such"
    ) as error:
        run_loader(spy(tmp_path, code, monkeypatch), tmp_path, tmp_path)
    assert "hf_0123456789" not in str(error.value) and "\n" not in str(error.value)
    monkeypatch.setattr(verify, "SECONDS", 0.2)
    with pytest.raises(UserError, match="did not finish within"):
        run_loader(spy(tmp_path, "import time; time.sleep(60)", monkeypatch), tmp_path, tmp_path)
    with pytest.raises(UserError, match=r"pip install 'mmalign\[export\]'"):
        run_loader(Loader("not_a_package", "ONNX Runtime"), tmp_path, tmp_path)


def test_a_missing_tower_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = source_of(build_encoder())
    ours = source.tower.encode(TEXTS)
    monkeypatch.setattr(verify, "run_loader", lambda *_: {"texts": ours})
    with pytest.raises(UserError, match="finds no tower for images"):
        verify_export(source, tmp_path, ["onnx"])
    assert verify_export(Source(tower=source.tower), tmp_path, ["onnx"]) == {"ONNX Runtime": 0.0}


def test_the_difference_is_that_of_vectors_of_length_one() -> None:
    ours = np.array([[300.0, 400.0], [0.0, 1.0]])
    assert largest_difference(ours, ours + 0.5) == pytest.approx(0.001)
    assert largest_difference(ours / 1000, ours / 1000 + 0.5) == pytest.approx(0.5)
    assert largest_difference(ours, ours[:1]) == float("inf")
    ((loader,), other) = LOADERS["onnx"], ours.copy()
    assert checked_difference(loader, {"texts": ours}, {"texts": other}) == 0
    for value, shown in ((1.0, "0.002"), (np.nan, "nan")):
        other[1, 1] = 1 + value
        with pytest.raises(UserError, match=f"texts are off by {shown}"):
            checked_difference(loader, {"texts": ours}, {"texts": other})


def test_a_loader_knows_its_library_only() -> None:
    libraries = {loader.package for several in LOADERS.values() for loader in several}
    program = ast.parse(verify.PROGRAM.read_text(encoding="utf-8"))
    functions = {one.name: one for one in program.body if isinstance(one, ast.FunctionDef)}
    assert libraries <= functions.keys()
    for name, part in {**functions, "": program}.items():
        nodes = list(ast.walk(part)) if name else program.body
        names = {a.name for node in nodes if isinstance(node, ast.Import) for a in node.names}
        names |= {str(node.module) for node in nodes if isinstance(node, ast.ImportFrom)}
        packages = {one.partition(".")[0] for one in names}
        assert libraries & packages == libraries & {name}
        assert "mmalign" not in packages and not {"onnxruntime", "torch"} <= packages


def test_what_must_not_be_published_is_refused(tmp_path: Path) -> None:
    machine, secret = "names a folder of this machine", "a token or a password"
    for name, content, sentence in (
        ("pytorch_model.bin", "", "can run code"),
        ("0_Module/modeling.py", "", "can run code"),
        ("model.safetensors", "not tensors", "not a complete safetensors file"),
        ("config.json", '{"_name_or_path": "/home/someone/model"}', machine),
        ("README.md", "trained in ~/runs/a", machine),
        ("1_Pooling/config.json", f'{{"a": "{Path.cwd()}/b"}}', machine),
        ("onnx/model.onnx", f"node {sys.prefix}/lib/x.py", machine),
        ("README.md", "export HF_TOKEN=hf_Abc0123456789", secret),
        ("lineage.json", '{"url": "https://me:secret@example.org/x"}', secret),
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(content, encoding="utf-8")
        with pytest.raises(UserError, match=f"{name}: .*{sentence}"):
            check_files(tmp_path, is_published=False)
        path.unlink()


def test_what_may_be_published_passes(tmp_path: Path) -> None:
    write_sentence_transformers(source_of(build_encoder()), tmp_path)
    words = (
        "see https://example.org/home/x, ../tmp/y, and/or, path/to/this/folder; hf_tokenizer_name"
    )
    (tmp_path / "README.md").write_text(words, encoding="utf-8")
    (tmp_path / "text").mkdir()
    (tmp_path / "text/tokenizer.json").write_text('{"/home/x": 1, "key=abc": 2}', encoding="utf-8")
    check_files(tmp_path, is_published=True)

    (tmp_path / "open_clip_config.json").write_text(json.dumps({"a": str(tmp_path)}), "utf-8")
    check_files(tmp_path, is_published=False)
    with pytest.raises(UserError, match="export it with --push"):
        check_files(tmp_path, is_published=True)

    (tmp_path / "vocab.txt").symlink_to(tmp_path / "README.md")
    with pytest.raises(UserError, match=r"vocab\.txt: a symbolic link"):
        check_files(tmp_path, is_published=False)
