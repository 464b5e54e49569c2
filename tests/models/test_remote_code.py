"""No model's own code is ever run, whatever its folder says and whoever sits at the terminal."""

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import mmalign
from mmalign.core.errors import UserError
from mmalign.data.tokenizer import load_tokenizer
from mmalign.models.load import load_text_encoder
from mmalign.models.text_tower import load_trunk, refuse_remote_code

PACKAGE = Path(mmalign.__file__).parent
LOADERS = ("from_pretrained", "from_config", "SentenceTransformer")
# It reads a JSON file, and takes no such argument.
WITHOUT_CODE = ("peft.PeftConfig.from_pretrained",)


def loading_calls(tree: ast.AST) -> Iterator[tuple[ast.Call | None, ast.expr]]:
    """Calls of functions that may run a model's code; None with a reference that is not called at once."""
    called = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
    for node in ast.walk(tree):
        name = getattr(node, "attr", None) or (getattr(node, "id", None))
        if name in LOADERS and isinstance(node, ast.Attribute | ast.Name):
            yield called.get(id(node)), node


def test_every_call_says_that_no_code_is_trusted() -> None:
    found = 0
    for path in sorted(PACKAGE.rglob("*.py")):
        for call, function in loading_calls(ast.parse(path.read_text(encoding="utf-8"))):
            if ast.unparse(function) in WITHOUT_CODE:
                continue
            where = f"{path.relative_to(PACKAGE)}:{function.lineno}: {ast.unparse(function)}"
            assert call is not None, f"{where} is not called where it stands"
            said = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
            assert said.get("trust_remote_code") == "False", where
            found += 1
    assert found >= 15


@pytest.fixture
def model_with_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose code writes a file when it is imported, and somebody who says yes."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "code.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    classes = {"AutoConfig": "code.C", "AutoModel": "code.M", "AutoTokenizer": ["code.T", None]}
    facts = {"model_type": "unknown-to-us", "architectures": ["M"], "auto_map": classes}
    (folder / "config.json").write_text(json.dumps(facts))
    tokenizer = {"tokenizer_class": "T", "auto_map": {"AutoTokenizer": ["code.T", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    monkeypatch.setattr("builtins.input", lambda *_: "y")
    return folder


def test_the_code_of_a_folder_is_refused(model_with_code: Path, tmp_path: Path) -> None:
    for load in (load_trunk, load_tokenizer, load_text_encoder):
        with pytest.raises(UserError):
            load(str(model_with_code))
    from transformers import AutoConfig

    refuse_remote_code()
    with pytest.raises(ValueError, match="custom code"):  # as open_clip calls it
        AutoConfig.from_pretrained(str(model_with_code))
    assert not (tmp_path / "ran").exists()
