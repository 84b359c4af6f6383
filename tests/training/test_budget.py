"""What fits into a budget: counted by hand."""

from __future__ import annotations

import pytest

from pyserve.training.budget import Speed, Work, batch_size_for, choose

# 1000 + 100 pictures; one is learnt from in 10 ms at 96 pixels, in 40 ms at 192, and measured in a quarter of that
SLOW = {96: Speed(0.010, 0.0025, 0.0), 192: Speed(0.040, 0.010, 0.0)}


def work(*, pretrained: bool = True, views: int = 0, speeds: dict[int, Speed] | None = None) -> Work:
    return Work(1000, 100, pretrained, views, speeds or SLOW)


def test_between_two_sizes_time_goes_with_the_area() -> None:
    speed = work().speed(144)  # (144² − 96²) / (192² − 96²) = 5/12 of the way
    assert speed.train_s == pytest.approx(0.010 + 5 / 12 * 0.030)
    assert speed.forward_s == pytest.approx(0.0025 + 5 / 12 * 0.0075)
    assert work().speed(96) == SLOW[96]
    assert work().speed(64) == SLOW[96]


@pytest.mark.parametrize(
    ("pictures", "batch"), [(10, 8), (320, 8), (639, 8), (640, 16), (2000, 32), (5120, 128), (50_000, 128)]
)
def test_batches_leave_an_epoch_forty_steps(pictures: int, batch: int) -> None:
    assert batch_size_for(pictures) == batch


def test_the_largest_size_with_enough_epochs_is_taken() -> None:
    """At 192 pixels an epoch takes about 41 s at most (1000 · 40 ms + 100 · 10 ms), activations 11 s."""
    generous = choose(work(), (96, 192), 400, 32)
    assert (generous.image_size, generous.epochs, generous.frozen_epochs) == (192, 8, 3)  # 8 are enough
    assert generous.start_image_size == 134
    assert not generous.freeze_body
    assert not generous.finds_rate
    tight = choose(work(), (96, 192), 80, 32)  # 192 pixels: 72 − 6 − 11 s = 55 s, room for 1 epoch or 2
    assert tight.image_size == 96
    # 96 pixels: 72 − 6 − 2.75 = 63.25 s; 8 epochs take at most 8 · (10 + 0.25) s
    assert tight.epochs in (6, 7)
    assert "96 pixels are the most with 3 epochs or more" in tight.why


@pytest.mark.parametrize("budget_s", [30, 60, 90, 150, 300, 600, 1200])
@pytest.mark.parametrize("pretrained", [True, False])
def test_what_is_chosen_fits(budget_s: float, pretrained: bool) -> None:
    """Everything added up here in another way than there: epoch by epoch at the full size, an upper bound."""
    done = choose(work(pretrained=pretrained, views=5), (96, 128, 160, 192), budget_s, 32)
    speed = work().speed(done.image_size)
    once = 1100 * speed.forward_s * pretrained + 5 * 100 * speed.forward_s
    finder = 100 * 32 * speed.train_s * done.finds_rate
    # pictures that grow save time: at the start size of 0.7 an epoch takes about half
    at_least = done.epochs * (0.45 * 1000 * speed.train_s + 100 * speed.forward_s)
    assert once + finder + at_least < 0.9 * budget_s
    assert once + finder + done.epochs_s <= 0.9 * budget_s - 6
    assert done.epochs_s <= done.epochs * (1000 * speed.train_s + 100 * speed.forward_s) + 1e-9


def test_too_little_time_for_everything_leaves_the_head() -> None:
    done = choose(work(), (96, 192), 20, 32)  # an epoch at 96 pixels takes 10 s, 12 − 2.75 s are left
    assert (done.image_size, done.freeze_body, done.epochs) == (192, True, 10)  # 12 s: 11 s of activations
    assert "only the head learns" in done.why
    hopeless = choose(work(), (96, 192), 5, 32)
    assert (hopeless.image_size, hopeless.freeze_body) == (96, True)
    assert "will take longer" in hopeless.why
    scratch = choose(work(pretrained=False), (96, 192), 5, 32)
    assert (scratch.image_size, scratch.epochs, scratch.freeze_body) == (96, 1, False)
    assert "will take longer" in scratch.why


def test_from_scratch_a_rate_is_found_where_that_is_cheap() -> None:
    done = choose(work(pretrained=False), (96,), 400, 32)  # 100 steps of 32 take 32 s
    assert (done.image_size, done.finds_rate, done.frozen_epochs) == (96, True, 0)
    assert not choose(work(pretrained=False), (96,), 200, 32).finds_rate
    assert not choose(work(pretrained=False), (96,), 400, 32, has_rate=True).finds_rate


def test_decoding_counts_where_it_is_still_to_be_done() -> None:
    fast = choose(work(), (96,), 60, 32).epochs
    decoding = {96: Speed(0.010, 0.0025, 0.020)}  # 22 s, two epochs
    assert choose(work(speeds=decoding), (96,), 60, 32).epochs == fast - 2


def test_small_pictures_do_not_grow() -> None:
    assert choose(work(speeds={32: Speed(0.001, 0.0003, 0.0)}), (32,), 60, 32).start_image_size is None
