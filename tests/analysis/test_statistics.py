"""Intervals and tests against SciPy called plainly, plain loops, simulations and hand counts."""

import warnings

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from seglab.analysis import statistics as stats
from seglab.metrics import scores as metrics

COUNTS = arrays(np.int64, st.tuples(st.integers(1, 6), st.just(4)), elements=st.integers(0, 10**6))


@pytest.fixture(autouse=True)
def no_warnings() -> None:
    """None may reach a terminal."""
    warnings.simplefilter("error")


def random_counts(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(1, 10_000, (*shape, 4)).astype(float)


def of_values(values: np.ndarray) -> np.ndarray:
    """Terms (1, 1, n, 2) of a mean."""
    return metrics.mean_terms(values, np.ones(len(values), bool))[None, None]


@pytest.mark.parametrize("seeds", [1, 3])
def test_the_interval_of_a_mean_is_scipys(seeds: int) -> None:
    parts = metrics.score_terms(random_counts(1, seeds, 40))["dice_per_image"]
    plain = scipy.stats.bootstrap(
        (parts[..., 0].mean(0),), np.mean, random_state=np.random.default_rng(0)
    ).confidence_interval
    assert stats.intervals(parts[None])[0] == pytest.approx(plain, abs=1e-8)


def test_the_interval_of_pooled_dice_is_that_of_a_plain_loop() -> None:
    counts = random_counts(2, 2, 17)

    def pooled(drawn: np.ndarray) -> float:
        by_seed = []
        for seed in counts:
            tp, fp, fn = (sum(seed[i, k] for i in drawn.astype(int)) for k in range(3))
            by_seed.append(2 * tp / (2 * tp + fp + fn))
        return sum(by_seed) / len(by_seed)

    plain = scipy.stats.bootstrap(
        (np.arange(17),), pooled, vectorized=False, random_state=np.random.default_rng(0)
    ).confidence_interval
    both = metrics.score_terms(counts)
    # Together with another score, it is what it is alone.
    found = stats.intervals(np.stack([both["specificity"], both["dice_pooled"]]))
    assert found[1] == pytest.approx(plain, abs=1e-8)
    alone = [stats.intervals(both[name][None])[0] for name in ("specificity", "dice_pooled")]
    assert (found == np.stack(alone)).all()


def test_of_many_cases_the_interval_is_of_percentiles(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "RESAMPLES", 99)
    values = np.random.default_rng(7).beta(8, 1, 5_001)
    options = {"n_resamples": 99, "random_state": np.random.default_rng(0)}
    plain = scipy.stats.bootstrap((values,), np.mean, method="percentile", **options)
    expected = pytest.approx(plain.confidence_interval, abs=1e-8)
    assert stats.intervals(of_values(values))[0] == expected


def test_batches_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "RESAMPLES", 999)
    parts = np.stack(list(metrics.score_terms(random_counts(8, 3, 31)).values()))
    differences = np.random.default_rng(9).normal(0.1, 1, 31)
    at_once = (stats.intervals(parts), stats.paired_test(differences))
    monkeypatch.setattr(stats, "BATCH_SIZE", 100 * 31)
    in_batches = (stats.intervals(parts), stats.paired_test(differences))
    assert (at_once[0] == in_batches[0]).all()
    assert at_once[1] == in_batches[1]


@pytest.mark.parametrize("values", [[0.3], [0.3] * 7, [0.0, 0.0], [1.0] * 140])
def test_without_spread_the_interval_is_the_value(values: list[float]) -> None:
    assert stats.intervals(of_values(np.array(values))).tolist() == [[values[0]] * 2]


def test_where_bca_has_no_answer_the_interval_is_of_percentiles() -> None:
    # Leaving any case out changes nothing; drawing the last alone, 1 in 27, gives 0 / 0 = 1.
    counts = np.array([[[5, 0, 5, 9], [5, 0, 5, 9], [0, 0, 0, 9]]], float)
    parts = metrics.score_terms(counts)["sensitivity"][None]
    assert stats.intervals(parts).tolist() == [[0.5, 1.0]]


@settings(max_examples=30, deadline=None)
@given(COUNTS, st.integers(0, 99))
def test_intervals_are_numbers_in_order(counts: np.ndarray, seed: int) -> None:
    counts[:, 3] += counts.sum(1) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats, "RESAMPLES", 99)
        both = np.stack([counts, np.random.default_rng(seed).permutation(counts)]).astype(float)
        found = stats.intervals(np.stack(list(metrics.score_terms(both).values())))
    assert np.isfinite(found).all()
    assert (found[:, 0] <= found[:, 1]).all()
    assert (found >= 0).all()
    assert (found <= 1 + 1e-12).all()


def test_intervals_cover_the_truth_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "RESAMPLES", 999)
    random = np.random.default_rng(3)
    hits = 0
    for _ in range(300):
        # Skewed like Dice: mean 8 / 9.
        low, high = stats.intervals(of_values(random.beta(8, 1, 60)))[0]
        hits += low <= 8 / 9 <= high
    assert 0.90 < hits / 300 < 0.98


def test_where_nothing_differs_one_test_in_twenty_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "RESAMPLES", 299)
    random = np.random.default_rng(4)
    p = [stats.paired_test(random.beta(8, 1, 40) - random.beta(8, 1, 40)).p for _ in range(400)]
    assert 0.03 < np.mean(np.array(p) <= 0.05) < 0.075


def test_a_real_difference_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "RESAMPLES", 299)
    random = np.random.default_rng(5)
    found = [stats.paired_test(random.normal(0.02, 0.03, 50)) for _ in range(100)]
    assert sum(test.p < 0.05 for test in found) > 95
    assert sum(0 < test.low < test.difference < test.high for test in found) > 95


def test_p_of_few_cases_is_exact() -> None:
    # Of 16 choices of signs 2 have a mean as large as 2.5, 4 one of at least 2.
    assert stats.paired_test(np.array([1.0, 2, 3, 4])).p == 2 / 16
    assert stats.paired_test(np.array([-1.0, 2, 3, 4])).p == 4 / 16
    assert stats.paired_test(np.array([0.2])) == (1, 0.2, 0.2, 0.2, 1.0)
    assert stats.paired_test(np.zeros(9)) == (9, 0.0, 0.0, 0.0, 1.0)
    values = np.random.default_rng(6).normal(0.3, 1, 12)
    means = [
        abs((values * signs).mean())
        for signs in np.ndindex(*[2] * 12)
        for signs in [1 - 2 * np.array(signs)]
    ]
    by_hand = np.mean(np.array(means) >= abs(values.mean()) - 1e-12)
    assert stats.paired_test(values).p == pytest.approx(by_hand)


@given(st.lists(st.floats(0, 1), max_size=8), st.floats(0.01, 0.99))
def test_holm_rejects_what_its_steps_reject(p: list[float], level: float) -> None:
    rejected, rest = set(), sorted(range(len(p)), key=p.__getitem__)
    while rest and p[rest[0]] * len(rest) <= level:
        rejected.add(rest.pop(0))
    assert {i for i, q in enumerate(stats.correct_holm(p)) if q <= level} == rejected
    assert max(stats.correct_holm(p), default=0) <= 1


def test_seeds_widen_an_interval_over_cases() -> None:
    # Two seeds at 0.8 and 0.9: Student's margin is 12.706 * 0.05. Ends over cases: -0.1 and +0.05.
    low, high = stats.add_seed_variation([0.8, 0.9], 0.75, 0.9)
    assert low == pytest.approx(0.85 - (0.1**2 + (12.706 * 0.05) ** 2) ** 0.5, abs=1e-4)
    assert high == pytest.approx(0.85 + (0.05**2 + (12.706 * 0.05) ** 2) ** 0.5, abs=1e-4)
    # Of cases without spread the interval over seeds is left; of equal seeds that over cases.
    values = [0.9, 0.93, 0.87, 0.91]
    mean = sum(values) / 4
    student = scipy.stats.ttest_1samp(values, 0).confidence_interval()
    assert stats.add_seed_variation(values, mean, mean) == pytest.approx([*student])
    assert stats.add_seed_variation([0.5] * 3, 0.4, 0.8) == pytest.approx((0.4, 0.8))


@given(st.lists(st.floats(0, 1), min_size=2, max_size=5), st.floats(0, 1), st.floats(0, 1))
def test_seeds_never_narrow_an_interval(values: list[float], a: float, b: float) -> None:
    low, high = stats.add_seed_variation(values, min(a, b), max(a, b))
    assert low <= min(a, b) + 1e-12
    assert high >= max(a, b) - 1e-12


@pytest.mark.long
@pytest.mark.parametrize("seeds", [2, 3, 5])
@pytest.mark.parametrize("sd", [0.002, 0.01])
def test_intervals_over_seeds_and_cases_hold_what_new_seeds_and_cases_score(
    monkeypatch: pytest.MonkeyPatch, seeds: int, sd: float
) -> None:
    """Mean and pooled Dice of lesions of many sizes; networks err differently on each case."""
    monkeypatch.setattr(stats, "RESAMPLES", 499)
    random = np.random.default_rng(seeds)

    def draw(n_seeds: int, n: int) -> np.ndarray:
        areas, dice = random.lognormal(9, 0.7, n), random.beta(18, 1, n)
        luck = sd * random.normal(size=(n_seeds, 1)) + 0.2 * (1 - dice) * random.normal(
            size=(n_seeds, n)
        )
        dice = np.clip(dice + luck, 0, 1)
        parts = metrics.mean_terms(dice, np.ones(dice.shape, bool))
        pooled = np.stack([dice * areas, np.broadcast_to(areas, dice.shape)], -1)
        return np.stack([parts, pooled])

    sums = draw(2_000, 2_000).sum(2)
    truth = (sums[..., 0] / sums[..., 1]).mean(1)
    hits = np.zeros(2)
    for _ in range(300):
        terms = draw(seeds, 140)
        for k, (low, high) in enumerate(stats.intervals(terms).tolist()):
            values = [metrics.ratio_of_sums(of_seed) for of_seed in terms[k]]
            low, high = stats.add_seed_variation(values, low, high)
            hits[k] += low <= truth[k] <= high
    assert (hits / 300 > 0.92).all(), hits


def plain_aurc(confidence: np.ndarray, dice: np.ndarray) -> float:
    """The area under the risk-coverage curve in plain loops."""
    cases = sorted(range(len(dice)), key=lambda i: -confidence[i])
    risks = [sum(1 - dice[i] for i in cases[:k]) / k for k in range(1, len(dice) + 1)]
    return sum(risks) / len(risks)


@pytest.mark.parametrize("n", [12, 60])
def test_intervals_of_areas_are_those_of_a_plain_loop(n: int) -> None:
    random = np.random.default_rng(n)
    dice = random.beta(8, 2, (2, n))
    # Rounded, so that there are ties.
    confidence = np.round(dice + random.normal(0, 0.1, (2, n)), 1)

    def mean_areas(drawn: np.ndarray) -> list[float]:
        cases = np.sort(drawn)  # tied cases stay in their order
        return [
            (plain_aurc(first[cases], dice[0, cases]) + plain_aurc(second[cases], dice[1, cases]))
            / 2
            for first, second in (confidence, dice)
        ]

    resamples = {"n_resamples": 199, "random_state": np.random.default_rng(0)}
    plain = scipy.stats.bootstrap((np.arange(n),), mean_areas, vectorized=False, **resamples)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stats, "RESAMPLES", 199)
        found = stats.aurc_intervals(np.stack([confidence, dice]), dice)
    assert found == pytest.approx(np.stack(plain.confidence_interval, -1), abs=1e-10)


def test_equal_cases_have_no_spread_of_risk() -> None:
    confidence, dice = np.random.default_rng(0).random((1, 30)), np.full((1, 30), 0.9)
    expected = np.full((1, 2), 0.1)
    assert stats.aurc_intervals(confidence[None], dice) == pytest.approx(expected, abs=1e-12)
    alone = stats.aurc_intervals(confidence[None, :, :1], dice[:, :1] / 2)
    assert alone == pytest.approx(np.full((1, 2), 0.55), abs=1e-12)


def test_power_is_that_of_the_textbook() -> None:
    """Of a difference of half a standard deviation, 34 pairs are needed for 80 % (Cohen 1988)."""
    for n, enough in ((33, False), (34, True)):
        values = scipy.stats.zscore(np.random.default_rng(0).normal(size=n), ddof=1)
        power = stats.find_power(values, width=0.5)
        assert power.sd == pytest.approx(1)
        assert power.detectable is not None
        assert (power.detectable < 0.5) is enough
        assert power.detectable == pytest.approx(0.5, abs=0.01)
        assert power.cases == 62  # (2 * 1.96 / 0.5) ** 2
    assert stats.find_power(values[:9], width=0.5).detectable is None
    assert stats.find_power(np.zeros(20), width=0.5) == (20, 0, 0, 2)


def test_four_of_five_tests_find_a_detectable_difference(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stats, "RESAMPLES", 299)
    random, found = np.random.default_rng(1), 0
    shift = stats.find_power(scipy.stats.zscore(random.normal(size=40), ddof=1), 0.1).detectable
    for _ in range(400):
        found += stats.paired_test(random.normal(shift, 1, 40)).p <= 0.05
    assert found / 400 == pytest.approx(0.8, abs=0.06)
