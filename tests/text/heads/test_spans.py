"""Answers are found in every window and cut from the original context."""

import itertools

import pytest
import torch
from tiny import tiny_model_config

from mmalign.core.errors import UserError
from mmalign.data.tokenizer import train_tokenizer
from mmalign.models.text_encoder import TextEncoder
from mmalign.models.text_tower import build_text_tower
from mmalign.text.heads.spans import SpanModel
from mmalign.text.tasks.task import Answer, Example

# (context, answers in it): what NFKC makes longer, shorter, or another letter.
CONTEXTS = {
    "latin": ("the dog sleeps on a green chair", ("dog", "the", "a green chair", "chair")),
    "ligature": ("a ﬁne ＦＵＬＬ width 123", ("ﬁne", "ＦＵＬＬ width", "123")),
    "cjk": ("赤いボールと犬、ﾎﾞｰﾙ ㍿です", ("ボール", "犬", "ﾎﾞｰﾙ", "㍿", "赤い")),
    "korean": ("빨간 공과 개가 있다", ("빨간", "공과 개가")),
    "korean jamo": ("\u1100\u1169\u11bc 과 \u1100\u1162", ("\u1100\u1169\u11bc", "\u1100\u1162")),
    "arabic": ("كلب صغير ﷺ في الحقل كِتَابٌ", ("كلب", "ﷺ", "الحقل", "كِتَابٌ")),
    "accents": ("un cafe\u0301 nai\u0308ve du cafe\u0301", ("cafe\u0301", "nai\u0308ve", "un")),
    "hindi": ("हिन्दी क़लम और ग़ज़ल", ("हिन्दी", "क़लम", "ग़ज़ल")),
    "thai": ("สุนัขตัวเล็กวิ่ง ทำ", ("ตัวเล็ก", "ทำ")),
    "spaces": ("  two   spaces\tand\nlines ", ("two   spaces", "lines")),
    "astral": ("a 🐕 and 𝟙 ball", ("🐕", "𝟙 ball")),
}
QUESTION = "where is it?"


@pytest.fixture(scope="module")
def tower() -> TextEncoder:
    texts = [QUESTION, *(context for context, _ in CONTEXTS.values())]
    tokenizer = train_tokenizer(texts * 4, 400)
    torch.manual_seed(0)
    text = build_text_tower(tiny_model_config().text, tokenizer.vocabulary, tokenizer.padding_id)
    return TextEncoder(text.trunk, tokenizer, max_length=64)


@pytest.fixture
def model(tower: TextEncoder) -> SpanModel:
    tower.max_length = 64
    return random_head(SpanModel(tower))


def random_head(model: SpanModel) -> SpanModel:
    torch.manual_seed(0)
    torch.nn.init.normal_(model.head.weight)
    return model


def asked(context: str, answer: str, question: str = QUESTION, start: int | None = None) -> Example:
    position = context.index(answer) if start is None else start
    return Example("0", "en", (question, context), (Answer(answer, position), Answer("?", 0)))


def perfect(target_N2: torch.Tensor, length: int) -> torch.Tensor:
    """(N, L, 2) logits that are high where the target is."""
    return torch.nn.functional.one_hot(target_N2, length).transpose(1, 2).float() * 9


@pytest.mark.parametrize("name", CONTEXTS)
def test_the_answer_is_cut_from_the_original_text(model: SpanModel, name: str) -> None:
    context, answers = CONTEXTS[name]
    for answer in answers:
        batch = model.collate([asked(context, answer)])
        assert batch.target.min() > 0, answer
        logits = perfect(batch.target, batch.tokens.token_NL.shape[1])
        assert model.decode(logits, batch) == [answer]


@pytest.mark.parametrize("question", ["a", QUESTION, QUESTION * 40])
def test_every_answer_in_a_long_context_is_whole_in_a_window(
    tower: TextEncoder, question: str
) -> None:
    tower.max_length = 32
    model = SpanModel(tower)
    context = " ".join(f"{i}{CONTEXTS['latin'][0]}" for i in range(9))
    starts = [i for i in range(len(context)) if context.startswith("dog", i)]
    examples = [asked(context, "dog", question, start) for start in starts]
    batch = model.collate(examples)
    assert batch.tokens.token_NL.shape[1] <= 32
    for number, start in enumerate(starts):
        own = batch.example_N == number
        held = own & (batch.target[:, 0] > 0)
        assert 0 < held.sum() < own.sum()
        for window in held.nonzero().flatten().tolist():
            first, last = batch.target[window].tolist()
            offsets = batch.tokens.encoding.encodings[window].offsets
            cut = context[offsets[first][0] : offsets[last][1]]
            assert cut.strip() == "dog" and offsets[first][0] in (start, start - 1)
    logits = perfect(batch.target, batch.tokens.token_NL.shape[1])
    assert model.decode(logits, batch) == ["dog"] * 9


def test_an_answer_that_no_window_holds_points_at_the_first_token(tower: TextEncoder) -> None:
    tower.max_length = 32
    model = SpanModel(tower)
    context = " ".join([CONTEXTS["latin"][0]] * 5)
    batch = model.collate([asked(context, context), Example("1", "en", (QUESTION, context), ())])
    assert batch.target.tolist() == [[0, 0]] * len(batch.example_N)
    losses = model.losses(model(batch), batch)
    assert losses.shape == (2,) and losses.isfinite().all()


def test_only_context_and_first_token_compete(model: SpanModel) -> None:
    batch = model.collate([asked(*("the dog", "dog")), asked(CONTEXTS["latin"][0], "dog")])
    logits = model(batch)
    for window in range(2):
        for token, sequence in enumerate(batch.tokens.encoding.sequence_ids(window)):
            shut = bool((logits[window, token] < -1e30).all())
            assert shut == (sequence != 1 and token != 0)


def test_the_loss_is_the_mean_over_the_windows_of_an_example(tower: TextEncoder) -> None:
    tower.max_length = 32
    model = random_head(SpanModel(tower))
    batch = model.collate([asked("the dog", "dog"), asked(CONTEXTS["latin"][0] * 4, "chair")])
    logits = model(batch)
    log_N2L = logits.log_softmax(1).transpose(1, 2)
    loss_N = torch.stack(
        [-(log_N2L[n, 0, s] + log_N2L[n, 1, e]) / 2 for n, (s, e) in enumerate(batch.target)]
    )
    own = batch.example_N == 1
    assert own.sum() > 1
    expected = torch.stack([loss_N[~own].mean(), loss_N[own].mean()])
    torch.testing.assert_close(model.losses(logits, batch), expected)


@pytest.mark.parametrize("longest", [1, 3, 100])
def test_decoding_takes_the_best_span_of_all_windows(tower: TextEncoder, longest: int) -> None:
    tower.max_length = 32
    model = SpanModel(tower, max_answer_tokens=longest)
    context = CONTEXTS["latin"][0] * 4
    batch = model.collate([asked("the dog", "dog"), asked(context, "chair")])
    logits = torch.randn(
        *batch.tokens.token_NL.shape, 2, generator=torch.Generator().manual_seed(1)
    )
    best: dict[int, tuple[float, str]] = {}
    for window, example in enumerate(batch.example_N.tolist()):
        offsets = batch.tokens.encoding.encodings[window].offsets
        inside = [i for i, s in enumerate(batch.tokens.encoding.sequence_ids(window)) if s == 1]
        for i, j in itertools.product(inside, inside):
            if i <= j < i + longest:
                score = float(logits[window, i, 0] + logits[window, j, 1])
                text = batch.examples[example].texts[1][offsets[i][0] : offsets[j][1]].strip()
                best[example] = max(best.get(example, (float("-inf"), "")), (score, text))
    assert model.decode(logits, batch) == [best[0][1], best[1][1]]


def test_a_context_without_tokens_has_no_answer(model: SpanModel) -> None:
    examples = [asked("", ""), asked("the dog", "dog")]
    found = model.predict(examples)
    assert found[0] == ""
    assert found[1] and found[1] in "the dog"  # type: ignore[operator]
    batch = model.collate(examples)
    assert model.losses(model(batch), batch).isfinite().all()


def test_too_short_a_tower_is_one_sentence(tower: TextEncoder) -> None:
    tower.max_length = 10
    with pytest.raises(UserError, match=r"max_length: 10 tokens leave 3 .* take a longer one"):
        SpanModel(tower)
