"""No secret survives redaction, and nothing else is lost."""

import pytest

from mmalign.core.redact import has_secret, redact, redact_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("upload --token hf_AbCdEfGhIj now", "upload --token [redacted] now"),
        ("HF_TOKEN=abc123 mmalign eval", "HF_TOKEN=[redacted] mmalign eval"),
        ("Authorization: Bearer abc.def", "Authorization: Bearer [redacted]"),
        ("s3://user:pw@host/bucket", "s3://[redacted]@host/bucket"),
        ("at https://host/a?X-Amz-Signature=1f&x=2 now", "at https://host/a now"),
        ("['gs://b/c?X-Goog-Signature=1f', 'd']", "['gs://b/c', 'd']"),
        ("AKIAIOSFODNN7EXAMPLE and ghp_abcdefghijklmnopqrst", "[redacted] and [redacted]"),
        ('{"password": "hunter2", "mode": 1}', '{"password": "[redacted]", "mode": 1}'),
        ("db_password: hunter2", "db_password: [redacted]"),
        (
            '{"api_key":null, "access_token": "1f"}',
            '{"api_key":null, "access_token": "[redacted]"}',
        ),
        (r'"{\"secret\": \"1f\"}"', r'"{\"secret\": \"[redacted]\"}"'),
        ("sig=1f", "sig=1f"),
        ("/a?sv=2&sig=1f%2B&x=3", "/a?sv=2&sig=[redacted]&x=3"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc", "[redacted]"),
        ("-----BEGIN RSA PRIVATE KEY-----\nabc\n-----END RSA PRIVATE KEY-----!", "[redacted]!"),
        ("kind: hf_dataset, hf_tokenizer_name: a", "kind: hf_dataset, hf_tokenizer_name: a"),
        ('"pad_token": "<pad>", "keys": 3', '"pad_token": "<pad>", "keys": 3'),
        ("the bearer of a basic text", "the bearer of a basic text"),
        ("tokenizer=trained seed=3 mask_token_rate", "tokenizer=trained seed=3 mask_token_rate"),
    ],
)
def test_text(text: str, expected: str) -> None:
    assert redact_text(text) == expected
    assert redact_text(expected) == expected
    assert not has_secret(expected)
    assert has_secret(text) == ("[redacted]" in expected or "Signature" in text)


def test_tree() -> None:
    tree = {
        "hub": {"api_key": "abc", "apiKey": "abc", "tokens": 3, "password": ["abc"]},
        "urls": ("http://a:b@c/d?e=f",),
        "key": None,
    }
    assert redact(tree) == {
        "hub": {
            "api_key": "[redacted]",
            "apiKey": "[redacted]",
            "tokens": 3,
            "password": "[redacted]",
        },
        "urls": ["http://[redacted]@c/d"],
        "key": None,
    }
