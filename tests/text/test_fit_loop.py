"""The order of rows in fine-tuning."""

import numpy as np
import pytest

from mmalign.text.fit_loop import shuffled_batches


def test_batches_of_like_length_hold_every_row_once_and_little_padding() -> None:
    random = np.random.default_rng(0)
    lengths = random.lognormal(3.7, 0.4, 5000).astype(int).tolist()

    def padding(how: list[int] | None, seed: int = 0) -> tuple[float, list[list[int]]]:
        batches = list(shuffled_batches(len(lengths), 32, 1, seed, how))
        assert sorted(i for one in batches for i in one) == list(range(len(lengths)))
        padded = sum(len(one) * max(lengths[i] for i in one) for one in batches)
        return padded / sum(lengths), batches

    (without, _), (share, batches) = padding(None), padding(lengths)
    assert without > 1.9 and share < 1.08
    # Neither the batches nor their order are the same in another epoch, and no order by length is left.
    assert padding(lengths, seed=1)[1] != batches
    means = [np.mean([lengths[i] for i in one]) for one in batches[:50]]
    assert abs(np.corrcoef(means, range(50))[0, 1]) < 0.4
    epochs = list(shuffled_batches(64, 32, 2, 0, lengths[:64]))
    assert sorted(map(sorted, epochs[:2])) == sorted(
        map(sorted, epochs[2:])
    )  # two batches: as sorted


@pytest.mark.parametrize("by_length", [True, False])
def test_no_batch_holds_a_row_twice_where_an_epoch_repeats_them(by_length: bool) -> None:
    """Both copies of a row are equally long, so batches of like length had hardly half as many rows."""
    rows_a_pass, copies = 701, 2
    lengths = np.random.default_rng(0).integers(20, 60, rows_a_pass).tolist() * copies
    how = lengths if by_length else None
    batches = list(shuffled_batches(rows_a_pass, 32, 3, 0, how, passes=copies))
    assert len(batches) == 3 * copies * 22
    assert all(len({row % rows_a_pass for row in one}) == len(one) for one in batches)
    of_epoch = [row for one in batches[: copies * 22] for row in one]
    assert sorted(of_epoch) == list(range(copies * rows_a_pass))
