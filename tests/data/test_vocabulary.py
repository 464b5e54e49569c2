"""Trimmed and grown vocabularies: covered texts keep their pieces, new pieces join old ones."""

from pathlib import Path

import pytest
from tiny import TEXTS, tiny_tokenizer
from tokenizers import Tokenizer as FastTokenizer
from tokenizers import models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from mmalign.core.errors import UserError
from mmalign.data.tokenizer import Tokenizer, load_tokenizer
from mmalign.data.vocabulary import grow, old_pieces, trim

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
NEW = ["mbwa mwekundu analala nyumbani", "mbwa analala", "mpira nyumbani"] * 4


def wordpiece(texts: tuple[str, ...] = TEXTS) -> Tokenizer:
    """A tokenizer of BERT's kind, whose special tokens are not at its first ids."""
    fast = FastTokenizer(models.WordPiece(unk_token="[UNK]"))
    fast.normalizer = normalizers.BertNormalizer(lowercase=True)
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=200, special_tokens=["[PAD]", "[unused]", *SPECIAL[1:]], show_progress=False
    )
    fast.train_from_iterator(texts, trainer)
    fast.post_processor = processors.BertProcessing(
        ("[SEP]", fast.token_to_id("[SEP]")), ("[CLS]", fast.token_to_id("[CLS]"))
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    roles = dict(zip(names, SPECIAL, strict=True))
    return Tokenizer(PreTrainedTokenizerFast(tokenizer_object=fast, **roles))


TOKENIZERS = {"unigram": tiny_tokenizer, "wordpiece": wordpiece}


def cut(tokenizer: Tokenizer, text: str) -> list[str]:
    ids = tokenizer([text], 64)[0][0].tolist()
    return list(tokenizer.inner.convert_ids_to_tokens(ids))


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_trimmed_tokenizer_cuts_its_texts_as_before(kind: str, tmp_path: Path) -> None:
    old = TOKENIZERS[kind]()
    texts = [*TEXTS[:2], "Hund 漢 \U0001f600 zz"]
    new = trim(old, texts)
    assert new.vocabulary < old.vocabulary
    new.save(tmp_path)
    for one in (new, load_tokenizer(tmp_path)):
        assert [cut(one, text) for text in texts] == [cut(old, text) for text in texts]
        assert one.padding_id == old.padding_id
        assert max(map(max, one(texts, 64)[0].tolist())) < one.vocabulary
        # Other words in the same letters are made of these, and are not unknown.
        assert one.inner.unk_token not in cut(one, "dab retor")
    assert cut(new, "красный") != cut(old, "красный")


def test_a_grown_wordpiece_knows_new_letters_and_cuts_other_texts_as_before(tmp_path: Path) -> None:
    old = wordpiece()
    armenian = "\u0577\u0578\u0582\u0576\u0568 \u0584\u0576\u0578\u0582\u0574"
    new = grow(old, [armenian, f"the {armenian} sleeps", *NEW] * 4, 100)
    new.save(tmp_path)
    for one in (new, load_tokenizer(tmp_path)):
        # Without the rule, a piece such as `analala` would replace the old pieces of a word.
        texts = [*TEXTS, "anal the balls dogs"]
        assert [cut(one, text) for text in texts] == [cut(old, text) for text in texts]
        assert old.inner.unk_token in cut(old, armenian)
        assert one.inner.unk_token not in cut(one, armenian)
    added = set(new.inner.get_vocab()) - set(old.inner.get_vocab())
    assert any(len(piece) > 4 and set(piece) <= set(armenian) for piece in added), added


def test_a_grown_unigram_model_needs_fewer_pieces_for_its_texts(tmp_path: Path) -> None:
    old = tiny_tokenizer()
    new = grow(old, NEW, 100)
    assert new.vocabulary > old.vocabulary
    new.save(tmp_path)
    for one in (new, load_tokenizer(tmp_path)):
        assert len(cut(one, NEW[0])) < len(cut(old, NEW[0]))
        # A text that no new piece joins is cut as before.
        assert cut(one, "красный мяч") == cut(old, "красный мяч")
    assert grow(old, NEW, 100).inner.get_vocab() == new.inner.get_vocab()
    before = old.inner.get_vocab()
    letters = set("".join(before))
    pieces = old_pieces(new, old)
    for piece, number in new.inner.get_vocab().items():
        if piece in before:
            assert pieces[number] == [before[piece]]
        else:
            joined = "".join(old.inner.convert_ids_to_tokens(pieces[number]))
            # Letters that the old one lacked, at this place of a word, are left out.
            assert not (set(joined) - set(piece) - {"#"})
            assert pieces[number] or not letters.issuperset(piece)


def test_a_grown_unigram_model_only_joins_pieces() -> None:
    old = tiny_tokenizer()
    new = grow(old, NEW, 100)
    pieces = old_pieces(new, old)
    for text in (*TEXTS, *NEW, "mbwa the ball analala dogs"):
        ids, before = (t([text], 64)[0][0].tolist() for t in (new, old))
        if old.inner.unk_token_id not in before:
            assert [one for number in ids for one in pieces[number]] == before


def test_tokens_of_another_kind_are_found_by_role_and_text() -> None:
    old, new = wordpiece(), tiny_tokenizer()
    pieces = old_pieces(new, old)
    assert pieces[new.padding_id] == [old.padding_id]
    assert pieces[new.inner.cls_token_id] == [old.inner.cls_token_id]
    known = [name for name in new.inner.get_vocab() if name.removeprefix("▁").isascii()]
    for name in set(known) - {"▁", *new.inner.all_special_tokens}:
        ids = old.inner(name.removeprefix("▁"), add_special_tokens=False)["input_ids"]
        assert pieces[new.inner.get_vocab()[name]] in (ids, [])


def test_what_cannot_be_trimmed_is_one_sentence() -> None:
    fast = FastTokenizer(models.BPE(unk_token="[UNK]"))
    fast.train_from_iterator(TEXTS, trainers.BpeTrainer(special_tokens=SPECIAL))
    tokenizer = Tokenizer(PreTrainedTokenizerFast(tokenizer_object=fast, pad_token="[PAD]"))
    with pytest.raises(UserError, match="is a BPE model, and only those of unigram and WordPiece"):
        trim(tokenizer, TEXTS)
    with pytest.raises(
        UserError, match=r"tokenizer\.grow: 8: .* not large enough .*; give a larger"
    ):
        grow(tiny_tokenizer(), TEXTS, 8)
