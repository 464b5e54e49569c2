"""Remove secrets from what is shown or published: configurations, command lines, environments.

text or tree -> the same with tokens, passwords and credentials in URLs replaced by `[redacted]`
"""

import re
from typing import Any

MARK = "[redacted]"

_SECRET_NAME = re.compile(r"(?i)(^|[_-])(token|key|secret|password)$")
_PATTERNS = (
    # tokens of the Hugging Face hub
    (re.compile(r"\bhf_[A-Za-z0-9]{6,}"), MARK),
    (re.compile(r"(?i)\b(bearer)[ :]+[^\s'\"]+"), rf"\1 {MARK}"),
    (re.compile(r"(?i)\b(\w*(?:token|key|secret|password))=[^\s'\"]+"), rf"\1={MARK}"),
    # user and password in a URL
    (re.compile(r"://[^\s/@]+@"), f"://{MARK}@"),
)


def redact_text(text: str) -> str:
    for pattern, replacement in _PATTERNS:
        text = pattern.sub(replacement, text)
    return text


def redact(tree: Any) -> Any:
    """A tree of mappings, lists and scalars without secrets; a key that names a secret loses its value."""
    if isinstance(tree, dict):
        return {
            key: MARK if _SECRET_NAME.search(str(key)) and isinstance(value, str) else redact(value)
            for key, value in tree.items()
        }
    if isinstance(tree, list | tuple):
        return [redact(value) for value in tree]
    return redact_text(tree) if isinstance(tree, str) else tree
