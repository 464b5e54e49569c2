"""The YAML files that come with mmalign are found by name from any folder."""

from pathlib import Path

import pytest

from mmalign.core.errors import UserError
from mmalign.core.resources import find_folder, find_yaml

ROOT = Path(__file__).parents[2]


def test_a_name_and_a_path_of_the_checkout_are_found_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = ROOT / "train" / "emoji_scenes.yaml"
    assert (
        find_yaml("emoji_scenes", "train") == find_yaml("train/emoji_scenes.yaml", "train") == file
    )
    assert find_yaml("emoji_scenes", "eval") == ROOT / "eval" / "emoji_scenes.yaml"
    assert find_folder("eval/prompts") == ROOT / "eval" / "prompts"
    assert find_folder("eval/nothing") is None


def test_a_file_that_exists_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = Path("train/emoji_scenes.yaml")
    own.parent.mkdir()
    own.write_text("name: mine")
    assert find_yaml(own, "train") == own
    assert find_yaml("emoji_scenes", "train") != own  # a name means the file of mmalign
    assert find_folder("train") == Path("train")


def test_a_wrong_name_is_an_error_that_lists_the_names() -> None:
    with pytest.raises(UserError, match=r"^emoji_scene: no such file; .*: .*emoji_scenes, flick"):
        find_yaml("emoji_scene", "data_recipes")
