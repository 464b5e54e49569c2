"""Remove secrets from what is shown or published: configurations, command lines, environments.

text or tree -> the same with tokens, passwords and credentials replaced by `[redacted]`, URLs without queries
"""

import re
from typing import Any

MARK = "[redacted]"

_NAMES = r"token|key|secret|password|passwd|passphrase|credentials?|authorization"
# The value of a field of such a name is a secret, but for the special tokens of tokenizers (`<s>`, `[PAD]`).
_SECRET_NAME = re.compile(rf"(?i)(^|[_-])({_NAMES})$|(access|api|auth|private|secret)(token|key)$")
_PATTERNS = (
    # Tokens and keys that have a form of their own: of the Hugging Face hub, AWS, GitHub, GitLab, Slack,
    # Google, and of services whose keys begin with `sk-`; JSON web tokens (RFC 7519); private keys in PEM.
    (re.compile(r"\bhf_(?=[a-z]*[A-Z0-9])[A-Za-z0-9]{6,}"), MARK),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{12,}\b"), MARK),
    (re.compile(r"\b(?:gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|AIza)[\w-]{10,}"), MARK),
    (re.compile(r"\bsk-(?=[\w-]*\d)[\w-]{16,}"), MARK),
    (re.compile(r"\beyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*"), MARK),
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----[\s\S]*?(?:-----END [A-Z ]*-----|\Z)"), MARK),
    (re.compile(r"(?i)\b(bearer|basic)[ :]+(?!\[)[\w.~+/=-]*[\d.=][\w.~+/=-]*"), rf"\1 {MARK}"),
    (re.compile(r"(?i)\b(\w*(?:token|key|secret|password))=[^\s'\"&]+"), rf"\1={MARK}"),
    # fields of YAML and JSON, also quoted once more
    (
        re.compile(
            r"(?i)\b(\w*(?:password|passwd|passphrase|secret|credentials?|api_?key|access_?key(?:_?id)?"
            r"|private_?key|(?:access|api|auth|hf|session)_?token)\\?[\"']?\s*:\s*\\?[\"']?)"
            r"(?!null\b|none\b|true\b|false\b|\[)[^\s\"'\\,}]+"
        ),
        rf"\1{MARK}",
    ),
    # user and password in a URL
    (re.compile(r"://[^\s/@]+@"), f"://{MARK}@"),
    # signatures in a URL (AWS, Google, Azure, CloudFront)
    (
        re.compile(r"(?i)([?&](?:x-(?:amz|goog)-\w+(?:-\w+)*|sig|signature)=)[^\s'\"&]+"),
        rf"\1{MARK}",
    ),
)
# Whatever a query says, it is not needed to name what was read.
_QUERY = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s'\"<>?]*)\?[^\s'\"<>)\]]*", re.IGNORECASE)


def has_secret(text: str) -> bool:
    """Whether a text holds what looks like a secret."""
    return any(pattern.sub(replacement, text) != text for pattern, replacement in _PATTERNS)


def redact_text(text: str) -> str:
    for pattern, replacement in ((_QUERY, r"\1"), *_PATTERNS):
        text = pattern.sub(replacement, text)
    return text


def redact(tree: Any) -> Any:
    """A tree of mappings, lists and scalars without secrets; a key that names a secret loses its value."""
    if isinstance(tree, dict):
        return {
            key: MARK
            if _SECRET_NAME.search(str(key)) and isinstance(value, str | list) and value
            else redact(value)
            for key, value in tree.items()
        }
    if isinstance(tree, list | tuple):
        return [redact(value) for value in tree]
    return redact_text(tree) if isinstance(tree, str) else tree
