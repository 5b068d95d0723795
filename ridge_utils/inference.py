"""Effects with intervals and p-values: paired comparisons, estimates from subsamples, Holm's correction.

Numbers in, numbers out. The rules are those of the book's protocol.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ridge_utils import results, tensors
from ridge_utils.errors import InputError, valid_seed, within

#: Coverage of every interval.
CONFIDENCE = 0.95
#: Up to this corrected p-value an effect counts as beyond its error.
LEVEL = 0.05
#: Resamples of every bootstrap and permutation test; a p-value is then never below 1 / (RESAMPLES + 1).
RESAMPLES = 9999

#: What :func:`effect_rows` appends to the name of a quantity; the estimate itself has no suffix.
SUFFIXES = ("_low", "_high", "_p", "_effect_size")

#: Values that a resampling holds in memory at once.
_AT_ONCE = 2**22


@dataclass(frozen=True)
class Effect:
    """A difference, how sure it is, and how large beside its spread."""

    #: the difference, in the unit of the quantity
    estimate: float
    #: lower end of the interval of coverage :data:`CONFIDENCE`
    low: float
    #: upper end of it
    high: float
    #: two-sided p-value of no difference, not corrected
    p: float
    #: the paired form of Cohen's d, d_z; NaN where there is no spread
    size: float


def paired_effect(first: Sequence[float], second: Sequence[float], seed: int = 0) -> Effect:
    r"""Mean of ``second - first`` over the same examples.

    Sign-flip permutation test of the mean difference (exact for few examples), percentile bootstrap over examples, and
    Cohen's :math:`d_z = \bar{d} / s_d`. Where all differences are equal, but for rounding, the interval is one point,
    and the size NaN unless they are 0.
    """
    change, mean, spread = _changes(first, second)
    valid_seed(seed=seed)
    rng = np.random.default_rng(seed)
    p = _sign_flips(change, rng) if mean else 1.0
    if not spread:
        return Effect(mean, mean, mean, p, math.nan if mean else 0.0)
    return Effect(mean, *_bootstrap(change, rng), p, mean / spread)


def repeat_effect(first: Sequence[float], second: Sequence[float]) -> Effect:
    r"""Mean of ``second - first`` over a few repeats of a computation, such as fits with other seeds.

    Five pairs have 32 assignments of signs, so a sign-flip test of them never gives a p-value below 1/16. Interval and
    p-value are those of Student's paired t-test instead; the size is in standard deviations of repeats.
    """
    change, mean, spread = _changes(first, second)
    effect = _from_error(mean, spread / math.sqrt(len(change)), len(change) - 1)
    return replace(effect, size=mean / spread if spread else (math.nan if mean else 0.0))


def half_sample_effect(halves: Sequence[float]) -> Effect:
    r"""An estimate from random halves of a pool of examples, for statistics that no bootstrap can resample.

    A repeated example lowers the entropy of a Gram matrix. The standard deviation over halves drawn *without*
    replacement estimates the standard error of the statistic on the whole pool (delete-half jackknife, [ShaoW89]_).
    Interval and p-value take the estimate as normal. Where all halves agree the interval is one point, and p is 0, or 1
    at 0. At least 20 halves are needed.

    .. [ShaoW89] J. Shao, C. F. J. Wu. *A General Theory for Jackknife Variance Estimation.* Annals of Statistics 17(3),
       1989.
    """
    halves = _finite(halves, "halves")
    if len(halves) < 20:
        raise InputError(f"At least 20 halves are needed for a standard error, but there are {len(halves)}.")
    return _from_error(*_moments(halves), math.inf)


def subsample_effect(values: Sequence[float], fraction: float) -> Effect:
    r"""An estimate from a few subsamples of a pool, drawn without replacement: the paper's sampling seeds.

    Subsamples that share most of the pool differ little. With a share f of the pool in each, 0 < f < 1, their standard
    deviation is that of fresh samples times :math:`\sqrt{1-f}`; divided by it, it is the standard error of one
    subsample's estimate, and somewhat too wide for their mean. Interval and p-value are Student's.
    """
    values = _finite(values, "values")
    within(1e-9, 1 - 1e-9, fraction=fraction)
    mean, spread = _moments(values)
    return _from_error(mean, spread / math.sqrt(1 - fraction), len(values) - 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values of one family of tests; a NaN is no test and stays one."""
    if isinstance(p_values, Sequence) and not p_values:
        return []
    p = tensors.shaped(p_values, "p_values", "(N,)", 1).double().numpy()
    tested = np.flatnonzero(~np.isnan(p))
    if bool(((p[tested] < 0) | (p[tested] > 1)).any()):
        raise InputError("p_values must lie between 0 and 1.")
    order = tested[np.argsort(p[tested], kind="stable")]
    adjusted = np.full(len(p), math.nan)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(p[order] * np.arange(len(order), 0, -1)))
    return adjusted.tolist()


def effect_rows(effect: Effect, site: tuple[int, str], quantity: str, **context: Any) -> pd.DataFrame:
    """An effect as rows of a table of measurements: the estimate, and one row for each of :data:`SUFFIXES`.

    A size that is not defined has no row; ``context`` is that of :func:`ridge_utils.results.measurements`.
    """
    values = (effect.estimate, effect.low, effect.high, effect.p, effect.size)
    names = [quantity, *(quantity + suffix for suffix in SUFFIXES)]
    rows = results.measurements(values, [site] * len(values), quantity, **context).assign(quantity=names)
    return rows.dropna(subset="value").reset_index(drop=True)


def effects(table: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """The effects of one name in a table, with ``estimate``, ``low``, ``high``, ``p`` and ``effect_size``."""
    names = {quantity: "estimate"} | {quantity + suffix: suffix[1:] for suffix in SUFFIXES}
    rows = table[table["quantity"].isin(names)]
    rows = rows.assign(quantity=rows["quantity"].map(names))
    keys = [key for key in results.KEY if key != "quantity" and key in rows]
    wide = rows.set_index([*keys, "quantity"])["value"].unstack("quantity").reset_index()  # noqa: PD010
    wide.columns.name = None
    return wide.reindex(columns=[*keys, *names.values()]).astype(dict.fromkeys(names.values(), np.float64))


def gathered(tables: Mapping[str, pd.DataFrame], names: Mapping[str, str]) -> pd.DataFrame:
    """The rows of :func:`effects` for several quantities and tables, with ``run``, ``quantity`` and ``effect``.

    ``run`` is what the reader calls a table, ``effect`` what ``names`` calls a quantity.
    """
    parts = [
        effects(table, quantity).assign(run=run, quantity=quantity, effect=effect)
        for run, table in tables.items()
        for quantity, effect in names.items()
    ]
    return pd.concat(parts, ignore_index=True)


def together(every: Sequence[Effect], confidence: float = CONFIDENCE) -> Effect:
    r"""The effects of K training seeds, measured on the same examples, as one estimate with its interval.

    Their mean, with the variance :math:`\bar v + s^2 / K`: :math:`\bar v` is the mean of their own variances, by the
    widths of their intervals, and s² the variance between seeds. Interval and p-value are Student's, with
    Satterthwaite's degrees of freedom. The interval of one seed by itself is stretched about its estimate.
    """
    if not every:
        raise InputError("every must hold an effect or more, but is empty.")
    within(1e-9, 1 - 1e-9, confidence=confidence)
    covered = stats.norm.ppf((1 + CONFIDENCE) / 2)
    if len(every) == 1:
        (one,), stretch = every, stats.norm.ppf((1 + confidence) / 2) / covered
        ends = (one.estimate + stretch * (end - one.estimate) for end in (one.low, one.high))
        return Effect(one.estimate, *map(float, ends), one.p, one.size)
    mean, spread = _moments(np.array([effect.estimate for effect in every]))
    own = sum(((effect.high - effect.low) / 2 / covered) ** 2 for effect in every) / len(every)
    between = spread**2 / len(every)
    freedom = (len(every) - 1) * ((own + between) / between) ** 2 if between else math.inf
    effect = _from_error(mean, math.sqrt(own + between), freedom, confidence)
    # What none of the seeds was tested for is not tested by all.
    p = math.nan if any(math.isnan(effect.p) for effect in every) else effect.p
    sizes = [effect.size for effect in every if not math.isnan(effect.size)]
    return replace(effect, p=p, size=sum(sizes) / len(sizes) if sizes else math.nan)


def across_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """The rows of :func:`gathered` or :func:`effects` with the training seeds of each model :func:`together`."""
    numbers = ["estimate", "low", "high", "p", "effect_size"]
    keys = [column for column in table if column not in (*numbers, "train_seed")]
    out = [
        (*key, *astuple(together([Effect(*row) for row in rows[numbers].itertuples(index=False)])))
        for key, rows in table.groupby(keys, sort=False, dropna=False)
    ]
    return pd.DataFrame(out, columns=[*keys, *numbers]).astype(table.dtypes[[*keys, *numbers]])


def _from_error(mean: float, error: float, freedom: float, confidence: float = CONFIDENCE) -> Effect:
    if not error:
        return Effect(mean, mean, mean, 0.0 if mean else 1.0, math.nan)
    distribution = stats.t(freedom) if math.isfinite(freedom) else stats.norm()
    reach = float(distribution.ppf((1 + confidence) / 2)) * error
    return Effect(mean, mean - reach, mean + reach, float(2 * distribution.sf(abs(mean) / error)), math.nan)


def _changes(first: Sequence[float], second: Sequence[float]) -> tuple[np.ndarray, float, float]:
    """Differences of pairs, their mean and their standard deviation."""
    before, after = _finite(first, "first"), _finite(second, "second")
    if len(before) != len(after):
        raise InputError(f"first and second must hold as many values, but hold {len(before)} and {len(after)}.")
    return after - before, *_moments(after - before, float(np.abs([before, after]).max()))


def _moments(values: np.ndarray, scale: float = 0.0) -> tuple[float, float]:
    """Mean and standard deviation, which is 0 where values differ by their rounding alone.

    Equal numbers can have a standard deviation of 1e-17, and a mean over that is no effect size.
    """
    rounding = 1e-12 * max(scale, float(np.abs(values).max()))
    if np.ptp(values) > rounding:
        return float(values.mean()), float(values.std(ddof=1))
    return (0.0 if abs(values[0]) <= rounding else float(values[0])), 0.0


def _finite(values: Sequence[float], name: str) -> np.ndarray:
    array = tensors.shaped(values, name, "(N,)").double().numpy()
    if not bool((np.abs(array) < tensors.LARGEST).all()):
        worst = int(np.flatnonzero(~(np.abs(array) < tensors.LARGEST))[0])
        raise InputError(f"{name} must hold finite numbers, but number {worst} of {len(array)} is {array[worst]}.")
    return array


def _sign_flips(change: np.ndarray, rng: np.random.Generator) -> float:
    """Two-sided p-value of a sum under random signs; under all assignments of them where those are few.

    scipy's ``permutation_test`` gives the same from ten times the time, too long for a test per block.
    """
    count = len(change)
    if exact := 2**count <= RESAMPLES:
        flipped = (np.arange(2**count)[:, None] >> np.arange(count)) % 2 @ change
    else:
        batch = _batch(change)
        sizes = [min(batch, RESAMPLES - done) for done in range(0, RESAMPLES, batch)]
        flipped = np.concatenate([rng.integers(0, 2, (size, count), np.int8) @ change for size in sizes])
    # Sums that are equal but for rounding are as extreme, also where the sum itself is nothing else.
    extreme = np.abs(change.sum() - 2 * flipped) >= abs(change.sum()) - 1e-12 * np.abs(change).sum()
    return float(extreme.mean() if exact else (extreme.sum() + 1) / (RESAMPLES + 1))


def _bootstrap(change: np.ndarray, rng: np.random.Generator) -> tuple[float, float]:
    """Percentile interval of a mean."""
    interval = stats.bootstrap(
        (change,), np.mean, confidence_level=CONFIDENCE, n_resamples=RESAMPLES, method="percentile", rng=rng,
        vectorized=True, batch=_batch(change),
    ).confidence_interval  # fmt: skip
    return float(interval.low), float(interval.high)


def _batch(change: np.ndarray) -> int:
    """How many resamples to hold at once."""
    return max(1, _AT_ONCE // len(change))
