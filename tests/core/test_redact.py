"""No secret survives redaction, and nothing else is lost."""

import pytest

from mmalign.core.redact import redact, redact_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("upload --token hf_AbCdEfGhIj now", "upload --token [redacted] now"),
        ("HF_TOKEN=abc123 mmalign eval", "HF_TOKEN=[redacted] mmalign eval"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer [redacted]"),
        ("s3://user:pw@host/bucket", "s3://[redacted]@host/bucket"),
        ("tokenizer=trained seed=3 mask_token_rate", "tokenizer=trained seed=3 mask_token_rate"),
    ],
)
def test_text(text: str, expected: str) -> None:
    assert redact_text(text) == expected


def test_tree() -> None:
    tree = {"hub": {"api_key": "abc", "tokens": 3}, "urls": ("http://a:b@c/d",), "key": None}
    assert redact(tree) == {
        "hub": {"api_key": "[redacted]", "tokens": 3},
        "urls": ["http://[redacted]@c/d"],
        "key": None,
    }
