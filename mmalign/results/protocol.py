"""How a number was obtained: plain fields, compared one by one, and a sentence for the pages.

    {"how": "{pictures} pictures, seed {seed}.", "pictures": 500, "seed": 0, "note": " Cut at 64 tokens."}
        -> "500 pictures, seed 0. Cut at 64 tokens."

`how` says what was done, with the names of fields in braces. Files of version 0.1.0 hold `how` alone, with
nothing left to fill in.
"""

import re
from typing import Any

Protocol = dict[str, Any]
HOW = "how"
NOTE = "note"  # a sentence about the model: its prompts, where it cuts texts
# The languages or pairs that `mean` is over, where these are not all that were measured.
MEAN_OVER = "mean_over"
# Perturbation -> languages with too few changed rows for its mean.
LEFT_OUT = "left_out"
# What follows from the model or its training is reported, but two models may differ in it.
OF_THE_MODEL = (NOTE, "steps", "kept_step", "dev", "layer", "mean_of_seeds", "C")
_MOST = 80  # characters of a field that a message repeats


def sentence(protocol: Protocol) -> str:
    """The protocol in words: `how` with its fields, and the remaining fields behind it."""
    how = str(protocol.get(HOW, ""))
    used = {HOW, NOTE, *re.findall(r"{(\w+)}", how)}
    # Not `format`: what is read from a file must not reach attributes.
    words = re.sub(r"{(\w+)}", lambda one: _shown(protocol.get(one[1], one[0])), how)
    rest = [
        f" {name.replace('_', ' ').capitalize()}: {_shown(value)}."
        for name, value in protocol.items()
        if name not in used
    ]
    return (words + "".join(rest) + str(protocol.get(NOTE, ""))).strip()


def joined(first: Protocol, second: Protocol) -> Protocol:
    """The fields of two protocols, and their sentences one behind the other."""
    words = [one[HOW] for one in (first, second) if HOW in one]
    return {**first, **second, HOW: " ".join(words)}


def difference(ours: Protocol | None, theirs: Protocol | None) -> str | None:
    """The first field in which two protocols differ, in words; None where they are the same."""
    ours, theirs = ours or {}, theirs or {}
    if [HOW] in (list(ours), list(theirs)):
        # Of version 0.1.0, whose sentences are those of today's fields where nothing changed, with the note
        # of the model or, where it has none, without.
        bare = (
            {name: value for name, value in one.items() if name != NOTE} for one in (ours, theirs)
        )
        same = sentence(ours) == sentence(theirs) or len(set(map(sentence, bare))) == 1
        return None if same else "see `protocol` in both files"
    for name in dict.fromkeys((*ours, *theirs)):
        one, other = ours.get(name), theirs.get(name)
        if name in OF_THE_MODEL or one == other:
            continue
        if len(f"{one}{other}") > _MOST:
            return f"`{name}` differs; see `protocol` in both files"
        return f"`{name}` is {_shown(one)}, not {_shown(other)}"
    return None


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} ({_shown(one)})" for name, one in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    return "not recorded" if value is None else str(value)
