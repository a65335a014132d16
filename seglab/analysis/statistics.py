"""Statistics over test cases: bootstrap intervals of scores, paired tests, Holm's correction.

Most scores are ratios of two sums over cases, and `seglab.metrics.scores.score_terms` returns what
each case adds to both. So one resampling of cases serves all these scores and all seeds. The area
under a risk-coverage curve is no such ratio: each resample is sorted anew.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from scipy import optimize, stats

from seglab.metrics.scores import mean_terms, ratio, ratio_of_sums

RESAMPLES = 9_999
INTERVAL_LEVEL = 0.95
POWER = 0.8
MIN_CASES_FOR_POWER = 10  # fewer say little about their standard deviation
MAX_CASES_FOR_BCA = 5_000
BATCH_SIZE = 2**22  # numbers in a batch of resamples


class PairedTest(NamedTuple):
    """Mean difference of two rows, first minus second, on the n cases that both have.

    `low` and `high` are the ends of its 95 % interval. `p` is the two-sided p value of the null
    hypothesis that the signs of the differences are arbitrary.
    """

    n: int
    difference: float
    low: float
    high: float
    p: float


class Power(NamedTuple):
    """What n differences can tell, by their standard deviation.

    `detectable` is the smallest true mean difference that a two-sided paired t-test at 5 % finds
    with 80 % power; None below `MIN_CASES_FOR_POWER`. `cases` is how many an interval of a given
    width needs.
    """

    n: int
    sd: float
    detectable: float | None
    cases: int


class SliceTest(NamedTuple):
    """Mean of a slice against other cases: 95 % intervals, difference, p that it is chance."""

    low: float
    high: float
    difference: float
    difference_low: float
    difference_high: float
    p: float


def intervals(terms: np.ndarray) -> np.ndarray:
    """Return 95 % intervals of scores averaged over seeds: bootstrap over cases, BCa (Efron 1987).

    The same cases are drawn for all seeds and scores, by a generator with a fixed seed. So the
    interval is for these networks on other cases; seeds are not drawn, for which see
    `add_seed_variation`. Above 5,000 cases the
    percentile method is used: BCa's jackknife is quadratic in the cases and corrects next to
    nothing there.

    Args:
        terms: float64 (K, S, n, 2) of `score_terms`, for K scores, S seeds and n cases.

    Returns:
        float64 (K, 2): lower and upper ends. Both are the value where there is only one case, or
        where all cases have the same value.
    """
    values = np.array([math.fsum(map(ratio_of_sums, seeds)) / len(seeds) for seeds in terms])
    is_constant = (np.ptp(ratio(terms[..., 0], terms[..., 1]), axis=-1) == 0).all(-1)
    n_numbers = terms[..., 0, :].size
    return _bootstrap(_make_statistic(terms), terms.shape[2], values, is_constant, n_numbers)


def aurc_intervals(confidences: np.ndarray, dice: np.ndarray) -> np.ndarray:
    """Return 95 % intervals of areas under risk-coverage curves, averaged over seeds.

    As `intervals`; for the curves see `seglab.metrics.confidence.risk_coverage`.

    Args:
        confidences: Of each case, float64 (K, S, n), for K measures, S seeds and n cases.
        dice: Of each case, float64 (S, n).

    Returns:
        float64 (K, 2): lower and upper ends.
    """
    statistic, n = _make_aurc_statistic(confidences, dice), dice.shape[1]
    values = statistic(np.arange(n))
    is_constant = np.full(len(values), (np.ptp(dice, axis=-1) == 0).all())
    return _bootstrap(statistic, n, values, is_constant, n)


def add_seed_variation(values: Sequence[float], low: float, high: float) -> tuple[float, float]:
    """Widen the interval of a mean over seeds so that it is over seeds and cases together.

    The distances of both ends are added in squares to that of Student's interval over seeds (Howe
    1974; Zou and Donner 2008, MOVER). So it is never narrower than the interval over cases, and
    keeps its skewness. With two seeds Student's quantile is 12.7.

    A bootstrap of seeds and cases (Owen 2007) is too narrow with five seeds or fewer, see
    seglab/analysis/README.md. Chance that is neither of a seed nor of a case alone is in both
    parts: the interval is a little too wide rather than too narrow.

    Args:
        values: Score of each of S >= 2 seeds, on the same cases.
        low: Lower end of the mean's 95 % interval over cases, see `intervals`.
        high: Its upper end.

    Returns:
        Lower and upper end. They may lie beyond the range of the score.
    """
    n, mean = len(values), math.fsum(values) / len(values)
    quantile = float(stats.t.ppf((1 + INTERVAL_LEVEL) / 2, n - 1))
    margin = quantile * float(np.std(values, ddof=1)) / math.sqrt(n)
    return mean - math.hypot(mean - low, margin), mean + math.hypot(high - mean, margin)


def _bootstrap(
    statistic: Callable[..., np.ndarray],
    n: int,
    values: np.ndarray,
    is_constant: np.ndarray,
    n_numbers: int,
) -> np.ndarray:
    """Return intervals, (K, 2), of K scores that a statistic maps drawn numbers of n cases to.

    `values`, (K,), are those of all cases; those that are constant, (K,), get no spread, which
    would be rounding errors. The statistic computes `n_numbers` for each resample.
    """
    constant_ends = np.stack([values, values], -1)
    if n == 1 or is_constant.all():
        return constant_ends
    with warnings.catch_warnings(), np.errstate(divide="ignore", invalid="ignore"):
        warnings.simplefilter("ignore", stats.DegenerateDataWarning)
        bootstrap = stats.bootstrap(
            (np.arange(n),),
            statistic,
            n_resamples=RESAMPLES,
            vectorized=True,
            confidence_level=INTERVAL_LEVEL,
            method="BCa" if n <= MAX_CASES_FOR_BCA else "percentile",
            batch=max(1, BATCH_SIZE // max(n, n_numbers)),
            random_state=np.random.default_rng(0),
        )
    tail = (1 - INTERVAL_LEVEL) / 2
    percentiles = np.quantile(bootstrap.bootstrap_distribution, [tail, 1 - tail], axis=-1).T
    ends = np.stack(bootstrap.confidence_interval, -1)
    # BCa gives NaN where all resamples lie on one side of the value.
    ends = np.where(np.isfinite(ends), ends, percentiles)
    return np.where(is_constant[:, None], constant_ends, ends)


def _make_statistic(terms: np.ndarray) -> Callable[..., np.ndarray]:
    """Return the function from drawn case numbers to scores that SciPy resamples."""
    n = terms.shape[2]
    # In steps of 2 ** -28 all sums are exact: no digit depends on the number of threads.
    addends = np.round(np.moveaxis(terms, 2, 0).reshape(n, -1) * 2**28) / 2**28

    def score(drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        rows = drawn.reshape(-1, drawn.shape[-1])
        offsets = n * np.arange(len(rows))[:, None]
        times_drawn = np.bincount((rows + offsets).ravel(), minlength=n * len(rows))
        sums = times_drawn.reshape(-1, n).astype(float) @ addends
        sums = sums.reshape(len(rows), *terms.shape[:2], 2)
        # Contiguous for each score: else SciPy would add up in another order.
        scores = np.ascontiguousarray(ratio(sums[..., 0], sums[..., 1]).mean(-1).T)
        return scores.reshape(len(terms), *drawn.shape[:-1])

    return score


def _make_aurc_statistic(confidences: np.ndarray, dice: np.ndarray) -> Callable[..., np.ndarray]:
    """Return the function from drawn case numbers to areas that SciPy resamples."""
    orders = np.argsort(-confidences, -1, kind="stable")
    ranks = np.argsort(orders, -1).astype(np.int32)
    risks = np.take_along_axis(np.broadcast_to(1 - dice, orders.shape), orders, -1)

    def score(drawn: np.ndarray, axis: int = -1) -> np.ndarray:
        rows = drawn.reshape(-1, drawn.shape[-1])
        # The i-th risk counts in the mean of the first k risks for every k >= i.
        weights = np.cumsum(1 / np.arange(rows.shape[-1], 0, -1))[::-1] / rows.shape[-1]
        areas = np.zeros((len(risks), len(rows)))
        for k, seed in np.ndindex(*risks.shape[:2]):
            drawn_risks = risks[k, seed][np.sort(ranks[k, seed][rows], -1)]
            areas[k] += (drawn_risks * weights).sum(-1) / risks.shape[1]
        return areas.reshape(-1, *drawn.shape[:-1])

    return score


def paired_test(differences: np.ndarray) -> PairedTest:
    """Test whether a mean difference is 0, by flipping signs (Fisher 1935).

    Args:
        differences: float64 (n,), n >= 1: first minus second, for each case.

    Returns:
        The mean, its interval, see `intervals`, and p: exact up to 13 cases, by 9,999 random
        flips beyond.
    """
    n = len(differences)
    ((low, high),) = intervals(mean_terms(differences, np.ones(n, bool))[None, None])
    mean = math.fsum(differences) / n
    if n == 1 or not differences.any():
        return PairedTest(n, mean, float(low), float(high), 1.0)
    test = stats.permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        vectorized=True,
        n_resamples=RESAMPLES,
        batch=max(1, BATCH_SIZE // n),
        random_state=np.random.default_rng(0),
    )
    return PairedTest(n, mean, float(low), float(high), float(test.pvalue))


def find_power(differences: np.ndarray, width: float) -> Power:
    """Tell which mean difference so many cases could show (Cohen 1988), without its mean.

    The permutation test of `paired_test` has about the power of the t-test. The standard deviation
    is an estimate itself: over other cases it is another one.

    Args:
        differences: float64 (n,), n >= 2: first minus second, for each case.
        width: Width of the 95 % interval of the mean difference, above 0.
    """
    n, sd = len(differences), float(np.std(differences, ddof=1))
    detectable = None
    if n >= MIN_CASES_FOR_POWER:
        critical = stats.t.ppf((1 + INTERVAL_LEVEL) / 2, n - 1)

        def miss(shift: float) -> float:
            found = stats.nct.sf(critical, n - 1, shift) + stats.nct.cdf(-critical, n - 1, shift)
            return float(found) - POWER

        detectable = optimize.brentq(miss, 1, 6) * sd / math.sqrt(n)
    needed = math.ceil((2 * stats.norm.ppf((1 + INTERVAL_LEVEL) / 2) * sd / width) ** 2)
    return Power(n, sd, detectable, max(2, needed))


def compare_slices(values: np.ndarray, members: np.ndarray, others: np.ndarray) -> list[SliceTest]:
    """Compare the means of values in K slices of n cases with those of other cases.

    `values` is float64 (n,), `members` and `others` are bool (K, n), none of them without a case.
    Intervals are those of `intervals`; p is of a two-sided permutation test of independent samples:
    9,999 times the cases of both exchange their values, and p is twice the smaller tail's share.
    """
    means = np.stack([mean_terms(values, part) for part in members])
    minus = np.stack([mean_terms(-2 * values, part) for part in others])
    # A difference as a mean of two scores: twice that of the slice, minus twice that of the others.
    differences = np.stack([means * [2, 1], minus], 1)
    ends = intervals(np.concatenate([np.stack([means, means], 1), differences]))
    of_members, of_others = (part / part.sum(1, keepdims=True) for part in (members, others))
    weights = of_members - of_others
    known, p = members | others, np.empty(len(members))
    for used in np.unique(known, axis=0):  # cases without the attribute exchange nothing
        chosen = (known == used).all(1)
        p[chosen] = _permute(values[used], weights[chosen][:, used].T)
    observed = weights @ values
    rows = np.hstack([ends[: len(p)], observed[:, None], ends[len(p) :], p[:, None]])
    return [SliceTest(*row) for row in rows.tolist()]


def _permute(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return p, (K,), of weighted sums of values, (n,), by weights, (n, K), on permuted values."""
    observed = values @ weights
    rounding = 1e-12 * np.abs(values).max()
    more, less = np.zeros((2, weights.shape[1]), int)
    random, batch = np.random.default_rng(0), max(1, BATCH_SIZE // len(values))
    for start in range(0, RESAMPLES, batch):
        shape = min(batch, RESAMPLES - start), len(values)
        drawn = random.permuted(np.broadcast_to(values, shape), axis=1) @ weights
        more += (drawn >= observed - rounding).sum(0)
        less += (drawn <= observed + rounding).sum(0)
    return np.minimum(1, 2 * (np.minimum(more, less) + 1) / (RESAMPLES + 1))


def correct_holm(p_values: Sequence[float]) -> list[float]:
    """Correct p values for multiple testing by Holm's step-down method (Holm 1979).

    Returns:
        Corrected values in the order of `p_values`: where those below 0.05 are taken for
        differences, the chance of any false one is below 0.05.
    """
    corrected, largest = [0.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        corrected[i] = largest
    return corrected
