"""An export is loaded by the other library in a clean process; what differs or does not belong is found."""

import ast
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from export_cases import build_encoder, source_of

from mmalign.core.errors import UserError
from mmalign.export import verify
from mmalign.export.file_checks import check_files
from mmalign.export.loaders import transformers_trunk
from mmalign.export.open_clip import write_open_clip
from mmalign.export.probes import probe_texts, write_probes
from mmalign.export.sentence_transformers import write_sentence_transformers
from mmalign.export.source import Source
from mmalign.export.verify import (
    LOADERS,
    Loader,
    checked_difference,
    largest_difference,
    our_vectors,
    run_loader,
    verify_export,
)

PROGRAMS = Path(verify.__file__).parent / "loaders"
SPY = """
import json, os, sys
import numpy as np
np.savez(sys.argv[3], seen=json.dumps({
    "environment": dict(os.environ), "folder": os.getcwd(), "path": sys.path, "isolated": sys.flags.isolated,
}))
"""


@pytest.fixture(scope="module")
def source() -> Source:
    return source_of(build_encoder())


@pytest.fixture(scope="module")
def texts_folder(source: Source, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("texts")
    write_sentence_transformers(source, folder)
    return folder


def spy(tmp_path: Path, code: str) -> Loader:
    """A loader that does something else than to load."""
    (tmp_path / "spy.py").write_text(code, encoding="utf-8")
    return Loader(str(tmp_path / "spy"), "the spy", "numpy")


def test_both_libraries_of_a_text_folder_agree(source: Source, texts_folder: Path) -> None:
    differences = verify_export(source, texts_folder, ["sentence-transformers"])
    assert differences.keys() == {"sentence-transformers", "transformers (AutoModel)"}
    assert max(differences.values()) <= 1e-6


@pytest.mark.parametrize(
    ("trunk", "pooling", "projection"),
    [("xlm-roberta", "last", "linear"), ("mt5", "cls", "mlp"), ("bert", "mean", "mlp")],
)
def test_the_trunk_by_hand_is_every_kind_of_tower(
    trunk: str, pooling: str, projection: str, tmp_path: Path
) -> None:
    source = source_of(build_encoder(trunk=trunk, pooling=pooling, text_projection=projection))
    write_sentence_transformers(source, tmp_path)
    texts = probe_texts()[::5]
    by_hand = transformers_trunk.encode(tmp_path, texts)
    assert largest_difference(source.tower.encode(texts), by_hand) <= 1e-6


def test_open_clip_agrees_on_texts_and_pictures_where_the_folder_was_moved(
    source: Source, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    write_open_clip(source, tmp_path / "out", home=str(tmp_path / "out"))
    (tmp_path / "out").rename(tmp_path / "moved")
    assert verify_export(source, tmp_path / "moved", ["open_clip"])["open_clip"] <= 1e-6


def test_the_process_is_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "mine"))
    vectors = run_loader(spy(tmp_path, SPY), tmp_path, tmp_path)
    seen = json.loads(str(vectors["seen"]))
    environment = seen["environment"]
    assert "hf_0123456789" not in str(seen)
    assert str(tmp_path) not in seen["path"] and str(Path.cwd()) not in [
        *seen["path"],
        seen["folder"],
    ]
    assert seen["isolated"] == 1
    assert environment["HF_HUB_OFFLINE"] == "1"
    assert environment["HF_HOME"].startswith(seen["folder"])
    assert not Path(seen["folder"]).exists()


def test_a_library_that_fails_is_one_sentence_without_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = spy(tmp_path, "raise OSError('no such file, asked with hf_0123456789')")
    with pytest.raises(
        UserError, match=r"the spy: cannot load the export \(OSError: no such"
    ) as error:
        run_loader(failing, tmp_path, tmp_path)
    assert "hf_0123456789" not in str(error.value) and "\n" not in str(error.value)

    monkeypatch.setattr(verify, "SECONDS", 0.2)
    with pytest.raises(UserError, match="did not finish within"):
        run_loader(spy(tmp_path, "import time; time.sleep(60)"), tmp_path, tmp_path)

    absent = Loader("onnx_runtime", "ONNX Runtime", "not_a_package")
    with pytest.raises(UserError, match=r"pip install 'mmalign\[export\]'"):
        run_loader(absent, tmp_path, tmp_path)


def test_a_tower_that_is_missing_is_found(
    source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "probes").mkdir()
    write_probes(tmp_path / "probes")
    ours = our_vectors(source, tmp_path / "probes")
    monkeypatch.setattr(verify, "run_loader", lambda *_: {"texts": ours["texts"]})
    assert verify_export(source, tmp_path, ["sentence-transformers"])
    with pytest.raises(UserError, match="finds no tower for images"):
        verify_export(source, tmp_path, ["onnx"])
    assert verify_export(Source(tower=source.tower), tmp_path, ["onnx"]) == {"ONNX Runtime": 0.0}


def test_dirty_texts_count_but_for_open_clip(source: Source, tmp_path: Path) -> None:
    ours = {"texts": np.ones((215, 2), np.float32)}
    theirs = {"texts": ours["texts"].copy()}
    theirs["texts"][-1] = 0
    assert checked_difference(LOADERS["open_clip"][0], ours, theirs) == 0
    with pytest.raises(UserError, match="texts are off by"):
        checked_difference(LOADERS["onnx"][0], ours, theirs)
    theirs["texts"][0] = np.nan
    with pytest.raises(UserError, match="off by nan"):
        checked_difference(LOADERS["open_clip"][0], ours, theirs)


def test_the_difference_is_that_of_vectors_of_length_one() -> None:
    ours = np.array([[300.0, 400.0], [0.0, 1.0]])
    assert largest_difference(ours, ours + 0.5) == pytest.approx(0.001)
    assert largest_difference(ours / 1000, ours / 1000 + 0.5) == pytest.approx(0.5)
    assert largest_difference(ours, ours[:1]) == float("inf")


@pytest.mark.parametrize("program", sorted(PROGRAMS.glob("[a-z]*.py")), ids=lambda path: path.stem)
def test_a_loader_knows_its_library_only(program: Path) -> None:
    tree = ast.parse(program.read_text(encoding="utf-8"))
    names = {a.name for node in ast.walk(tree) if isinstance(node, ast.Import) for a in node.names}
    names |= {str(node.module) for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    packages = {name.partition(".")[0] for name in names}
    assert "mmalign" not in packages
    others = {"open_clip", "sentence_transformers", "transformers", "onnxruntime"} & packages
    assert len(others) == 1
    if "onnxruntime" in packages:
        assert "torch" not in packages
    loaders = {loader.program: loader for several in LOADERS.values() for loader in several}
    assert loaders[program.stem].package in others


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("pytorch_model.bin", "", "can run code"),
        ("0_Module/modeling.py", "", "can run code"),
        ("model.safetensors", "not tensors", "not a whole safetensors file"),
        (
            "config.json",
            '{"_name_or_path": "/home/someone/model"}',
            "names a folder of this machine",
        ),
        ("README.md", "trained in ~/runs/a", "names a folder of this machine"),
        ("1_Pooling/config.json", f'{{"a": "{Path.cwd()}/b"}}', "names a folder of this machine"),
        ("onnx/model.onnx", f"node {sys.prefix}/lib/x.py", "names a folder of this machine"),
        ("README.md", "export HF_TOKEN=hf_Abc0123456789", "a token or a password"),
        ("lineage.json", '{"url": "https://me:secret@example.org/x"}', "a token or a password"),
    ],
)
def test_what_must_not_be_published_is_refused(
    name: str, content: str, sentence: str, tmp_path: Path
) -> None:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=f"{name}: .*{sentence}"):
        check_files(tmp_path, is_published=False)


def test_what_may_be_published_passes(texts_folder: Path, tmp_path: Path) -> None:
    check_files(texts_folder, is_published=True)
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
