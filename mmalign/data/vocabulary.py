"""Another vocabulary for a pretrained tokenizer: only the pieces that texts use, or more pieces for them.

    tokenizer, texts -> trim -> fewer pieces, and these texts have the same ones as before
                     -> grow -> its pieces, and the most useful new ones of the texts
    tokenizer before and after -> old_pieces -> the old pieces of each new one, to start its embedding from

For unigram models (XLM-R, mT5, E5) and WordPiece (BERT, MiniLM). What becomes of the embedding's rows is in
`models/vocabulary.py`; compare FOCUS (arXiv 2305.14481) and WECHSEL (arXiv 2112.06598).
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from mmalign.core.batching import batched
from mmalign.core.errors import UserError, one_line
from mmalign.data.tokenizer import Tokenizer

_TEXTS = 4096  # tokenized at a time
_CONTINUED = "##"  # before a piece of WordPiece inside a word
_START = "▁"  # before a piece of a unigram model at the start of a word
# How much a merged piece of a unigram model scores above its parts, for each part after the first: more than
# float32 loses, less than what distinguishes two ways to cut a text.
_BONUS = 1e-3


def trim(tokenizer: Tokenizer, texts: Iterable[str]) -> Tokenizer:
    """The tokenizer without the pieces that no text uses; the texts keep theirs.

    Single characters of the pieces in use stay, so that another word in the same letters has pieces too.

    Raises:
        UserError: neither a unigram model nor WordPiece.
    """
    tree, pieces = _model_of(tokenizer)
    fast = _fast(tokenizer)
    used: set[int] = set()
    for chunk in batched(texts, _TEXTS):
        for encoding in fast.encode_batch(chunk, add_special_tokens=False):
            used.update(encoding.ids)
    names = list(pieces)
    kept = {names[number] for number in used if number < len(names)}
    letters = {letter for piece in kept for letter in piece.removeprefix(_CONTINUED)}
    kept |= letters | {_CONTINUED + letter for letter in letters}
    kept |= {one["content"] for one in tree["added_tokens"]} | {tree["model"].get("unk_token")}
    # XLM-R counts positions from behind the id of its padding token, which must therefore stay what it is.
    kept.update(names[: tokenizer.padding_id + 1])
    if tree["model"]["type"] == "Unigram":
        kept |= {names[tree["model"]["unk_id"] or 0], *(f"<0x{byte:02X}>" for byte in range(256))}
        # An unknown character scores as the lowest piece less 10: it must not become the better choice.
        kept.add(min(pieces, key=pieces.__getitem__))
    return _rebuilt(tokenizer, tree, {p: score for p, score in pieces.items() if p in kept})


def grow(tokenizer: Tokenizer, texts: Iterable[str], size: int) -> Tokenizer:
    """The tokenizer with the pieces of a vocabulary of `size`, trained on the texts, that it lacks.

    In a unigram model a new piece scores just above the old pieces that it joins. So a text is cut as before,
    except that new pieces join neighbours. WordPiece takes the longest piece that fits, so any new one would
    cut old texts in another way: only pieces with a letter that was unknown are added.

    Raises:
        UserError: neither a unigram model nor WordPiece, or the texts have more letters than `size`.
    """
    from tokenizers import Tokenizer as FastTokenizer
    from tokenizers import models, pre_tokenizers, trainers

    tree, pieces = _model_of(tokenizer)
    is_unigram = tree["model"]["type"] == "Unigram"
    old, unknown = _fast(tokenizer), tokenizer.inner.unk_token
    settings: dict[str, Any] = {"vocab_size": size, "special_tokens": [unknown]}
    trainer: Any
    if is_unigram:
        fast, words = FastTokenizer(models.Unigram()), []
        trainer = trainers.UnigramTrainer(unk_token=unknown, show_progress=False, **settings)
    else:
        # As the trainer of WordPiece does it, but with starts of words marked instead of insides: that one
        # numbers its marked letters, and so breaks ties, at random.
        fast, words = FastTokenizer(models.BPE()), [pre_tokenizers.Metaspace()]
        trainer = trainers.BpeTrainer(min_frequency=2, show_progress=False, **settings)
    if old.normalizer is not None:
        fast.normalizer = old.normalizer
    fast.pre_tokenizer = pre_tokenizers.Sequence([old.pre_tokenizer, *words])
    try:
        fast.train_from_iterator(texts, trainer)
    except Exception as error:  # tokenizers has no class of its own: fewer pieces than letters
        raise UserError(f"tokenizer.grow: {size}: {one_line(error)}; give a larger one") from None
    found = set(fast.get_vocab())
    if not is_unigram:
        found = {_as_wordpiece(piece) for piece in found - {_START, unknown}}
        found = {piece for piece in found if not _letters(piece) <= pieces.keys()}
    score_of = list(pieces.values())
    # As an unknown character scores; `<unk>` itself is written down as 0.
    score_of[tree["model"].get("unk_id") or 0] = min(score_of) - 10
    grown = dict(pieces)
    for piece in sorted(found - old.get_vocab().keys()):
        parts = old.model.tokenize(piece) if is_unigram else []
        joins = _BONUS * max(1, len(parts) - 1)
        grown[piece] = sum(score_of[part.id] for part in parts) + joins
    return _rebuilt(tokenizer, tree, grown)


def _as_wordpiece(piece: str) -> str:
    return piece.removeprefix(_START) if piece.startswith(_START) else _CONTINUED + piece


def _letters(piece: str) -> set[str]:
    # The pieces of one letter that WordPiece falls back on.
    bare = piece.removeprefix(_CONTINUED)
    first = piece.removesuffix(bare[1:])
    return {first, *(_CONTINUED + letter for letter in bare[1:])}


def old_pieces(tokenizer: Tokenizer, old: Tokenizer) -> list[list[int]]:
    """For each token of a tokenizer, the ids of the old tokenizer's tokens that it is made of.

    One id: the same piece, or the token of the same role (padding, start, ...). None: all of it was unknown.
    """
    before = old.inner.get_vocab()
    kinds = {_fast(one).model.__class__.__name__ for one in (old, tokenizer)}
    roles = tokenizer.inner.special_tokens_map.items()
    same_role = {t: getattr(old.inner, role, None) for role, t in roles if isinstance(t, str)}
    found: list[list[int]] = [[] for _ in range(tokenizer.vocabulary)]
    for piece, number in tokenizer.inner.get_vocab().items():
        same = same_role.get(piece) or (piece if len(kinds) == 1 else None)
        if same in before:
            found[number] = [before[same]]
            continue
        if kinds == {"Unigram"}:
            ids = [token.id for token in _fast(old).model.tokenize(piece)]
        elif kinds == {"WordPiece"}:
            ids = _longest_first(piece, before)
        else:
            text = tokenizer.inner.convert_tokens_to_string([piece]).removeprefix(_CONTINUED)
            ids = old.inner(text, add_special_tokens=False)["input_ids"]
        found[number] = [one for one in ids if one != old.inner.unk_token_id]
    return found


def _longest_first(piece: str, vocabulary: Mapping[str, int]) -> list[int]:
    # As WordPiece cuts a word, but a piece may begin inside of one: a letter that the vocabulary has only at
    # the start of words counts as well, and an unknown one is left out.
    prefix = _CONTINUED if piece.startswith(_CONTINUED) else ""
    rest, ids = piece.removeprefix(_CONTINUED), []
    while rest:
        cuts = ((size, mark) for mark in (prefix, "") for size in range(len(rest), 0, -1))
        size, mark = next((c for c in cuts if c[1] + rest[: c[0]] in vocabulary), (0, ""))
        if size:
            ids.append(vocabulary[mark + rest[:size]])
        rest, prefix = rest[size or 1 :], _CONTINUED
    return ids


def _fast(tokenizer: Tokenizer) -> Any:
    fast = getattr(tokenizer.inner, "backend_tokenizer", None)
    if fast is None:
        raise UserError(
            f"tokenizer: `{tokenizer.inner.name_or_path}` has no `tokenizer.json`, so its vocabulary cannot "
            "be changed; save it as a fast tokenizer of transformers"
        )
    return fast


def _model_of(tokenizer: Tokenizer) -> tuple[dict[str, Any], dict[str, float]]:
    # The tokenizer's description, and the pieces of its model in the order of their ids, with their scores.
    fast = _fast(tokenizer)
    fast.no_truncation()  # as the last call left them
    fast.no_padding()
    tree: dict[str, Any] = json.loads(fast.to_str())
    kind, vocabulary = tree["model"]["type"], tree["model"]["vocab"]
    if kind == "Unigram":
        return tree, {piece: score for piece, score in vocabulary}
    if kind == "WordPiece":
        return tree, dict.fromkeys(sorted(vocabulary, key=vocabulary.__getitem__), 0.0)
    raise UserError(
        f"tokenizer: `{tokenizer.inner.name_or_path}` is a {kind} model, and only those of unigram and "
        "WordPiece can be trimmed and grown; remove `keep` and `grow`"
    )


def _rebuilt(tokenizer: Tokenizer, tree: dict[str, Any], pieces: Mapping[str, float]) -> Tokenizer:
    # The tokenizer of this description with other pieces, whose ids are their places.
    from tokenizers import Tokenizer as FastTokenizer
    from transformers import PreTrainedTokenizerFast

    outside = (one["content"] for one in tree["added_tokens"] if one["content"] not in pieces)
    ids = {piece: number for number, piece in enumerate([*pieces, *outside])}
    model = tree["model"]
    if model["type"] == "Unigram":
        unknown = model["vocab"][model["unk_id"]][0] if model["unk_id"] is not None else None
        model |= {"vocab": list(pieces.items()), "unk_id": ids.get(unknown)}
    else:
        model["vocab"] = {piece: ids[piece] for piece in pieces}
    for one in tree["added_tokens"]:
        one["id"] = ids[one["content"]]
    tree["post_processor"] = _renumbered(tree["post_processor"], ids)
    inner = tokenizer.inner
    names = ("model_input_names", "model_max_length", "padding_side", "truncation_side")
    return Tokenizer(
        PreTrainedTokenizerFast(
            tokenizer_object=FastTokenizer.from_str(json.dumps(tree)),
            **{name: getattr(inner, name) for name in names},
            **inner.special_tokens_map,
        )
    )


def _renumbered(tree: Any, ids: Mapping[str, int]) -> Any:
    # A post-processor names special tokens as `["</s>", 2]`, or as `{"ids": [2], "tokens": ["</s>"]}`.
    if isinstance(tree, list):
        if len(tree) == 2 and isinstance(tree[0], str) and tree[0] in ids:
            return [tree[0], ids[tree[0]]]
        return [_renumbered(one, ids) for one in tree]
    if not isinstance(tree, dict):
        return tree
    new = {name: _renumbered(one, ids) for name, one in tree.items()}
    if "ids" in tree and "tokens" in tree:
        # Not through the line above: a list of two tokens is no token with its id.
        new["tokens"], new["ids"] = tree["tokens"], [ids[token] for token in tree["tokens"]]
    return new
