"""Files of class names and prompts: those that ship, and broken ones."""

import json
from pathlib import Path
from typing import Any

import pytest

from mmalign.core.errors import UserError
from mmalign.evaluation.class_names import read_names, read_prompts

ROOT = Path(__file__).parents[2]
PROMPTS = sorted((ROOT / "eval" / "prompts").glob("*.json"))
TENCH = "n01440764"  # class 0 of ImageNet-1k


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("{", "`the file`: Invalid JSON"),
        ('{"DE": [[0, 1], ["a"]]}', "`DE` must have one name for each class number"),
        ('{"DE": [[0, 0], ["a", "b"]]}', "`DE` must have one name for each class number"),
        ('{"DE": [[1000], ["a"]]}', "`DE.0.0`: Input should be less than 1000"),
        ('{"DE": [[0], [" "]]}', "`DE.1.0`: String should have at least 1 character"),
        ({"templates": ["a photo"]}, "`templates`: each template must hold `{}` once"),
        ({"templates": ["{} and {}"]}, "`templates`: each template must hold `{}` once"),
        ({"templates": ["{}", "{}"]}, "`templates`: a template is there twice"),
        ({"templates": []}, "`templates`: Tuple should have at least 1 item"),
        ({"lang": "de"}, "`lang` is `de`; name the file de.json"),
        ({"author": "x"}, "`author`: Extra inputs are not permitted"),
    ],
)
def test_broken_names_and_prompts_are_one_sentence(
    tmp_path: Path, text: str | dict[str, Any], complaint: str
) -> None:
    path = tmp_path / "en.json"
    prompts = {"lang": "en", "templates": ["{}"], "source": "x"}
    path.write_text(text if isinstance(text, str) else json.dumps({**prompts, **text}))
    with pytest.raises(UserError) as error:
        if isinstance(text, str):
            read_names(str(path), [TENCH])
        else:
            read_prompts(path)
    assert str(error.value).startswith(str(path)) and complaint in str(error.value)


def test_shipped_prompts_are_valid_in_many_languages() -> None:
    assert len(PROMPTS) > 25
    for path in PROMPTS:
        templates = read_prompts(path).templates
        assert 7 <= len(templates) <= 10, path
        assert all(template == template.strip() for template in templates), path
