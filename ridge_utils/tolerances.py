"""How far the numbers of a notebook move when nothing but the arithmetic changes, and the tolerances that follow.

Training amplifies rounding: two machines that differ in the seventeenth bit of one sum end with weights that differ
visibly. How visibly is not guessed: ``benchmarks/repeat.py`` repeats a run under other conditions.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from ridge_utils import inference, results
from ridge_utils.errors import InputError

_BY_TOLERANCE = {
    # Counts and constants.
    1e-9: "chance_attention fit_converged",
    1e-6: "null_entropy",
    # What follows from the states smoothly: float32 in the forward pass, float64 in the estimator.
    1e-4: """mean_cosine unbiased_information ridge_information plug_in plug_in_null
        signal_attention signal_after_first_attention last_token_attention first_token_attention
        signal_attention_fall signal_attention_excess last_token_attention_excess
        ridge_attention_fall ridge_attention_excess last_token_lead""",
    1e-3: """predictive_information incremental_information null_information
        sequence_information_all_reference sequence_information_aligned_reference
        state_entropy loss loss_scaled_on_id loss_scaled_on_ood residual_scale
        scale_shift distance_correlation cka log_probability_change log_probability_gap
        ablation_contrast collision_entropy predicted_entropy correlation alignment""",
    2e-3: "control_fall control_excess control_excess_fall",
    1e-2: """v_information v_information_fall information_fall information_rise
        correlation_fall plug_in_fall bias_share gain_over_first gain_over_last last_block_rise
        last_block_contrast last_block_correlation_rise last_block_probe_rise""",
    # Two examples of 250 may change their likeliest token.
    0.0081: """accuracy accuracy_scaled_on_id accuracy_scaled_on_ood early_exit_accuracy scaled_accuracy_gain
        probe_accuracy majority_accuracy exit_gain""",
    # A near tie between two tokens can break the other way, and that text then goes on differently; a neighbour can
    # change, and a critic is trained.
    2e-2: "sequence_information_all_generated ksg_information peak_fall",
    5e-2: "level_growth probe_fall ridge_z sequence_information_aligned_generated info_nce",
    0.1: "window_correlation effective_rank",
    # An argmax over layers can jump where two layers are nearly alike.
    1.0: "ridge_layer",
    2.0: "fit_steps",
}

#: Agreement required of the untouched model's values on any CPU, by quantity, in its unit.
UNTOUCHED = {quantity: allowed for allowed, quantities in _BY_TOLERANCE.items() for quantity in quantities.split()}

#: Effects that are differences of two values of another quantity, each of which may move by its tolerance. They need no
#: repetition of their own.
DIFFERENCE_OF = {
    "signal_attention_fall": "signal_after_first_attention",
    "signal_attention_excess": "signal_after_first_attention",
    "last_token_attention_excess": "signal_after_first_attention",
    "ridge_attention_fall": "signal_after_first_attention",
    "ridge_attention_excess": "signal_after_first_attention",
    "last_token_lead": "signal_after_first_attention",
}

#: A tolerance is this many times the largest difference that was seen, because other machines round in more ways.
MARGIN = 2.0

#: So many layers on either side of a layer have a say in its tolerance.
NEIGHBOURS = 2

#: An end of an interval is at most so many standard errors from its estimate; Student's t with four degrees of freedom
#: has 2.8.
REACH = 3.0
#: The score of a p-value of 0, which stands for any that is too small for a float.
_LARGEST_SCORE = 40.0

#: Folder in ``results/`` of the differences that ``benchmarks/repeat.py`` measured, one table per notebook.
DIFFERENCES = "differences"

#: What a difference, and so a tolerance, belongs to.
KEY = ["model", "step", "layer", "site", "quantity", "variant"]


def differences_of(notebook: str) -> pd.DataFrame | None:
    """The stored differences of a notebook, or None where there are none because it trains nothing."""
    path = results.FOLDER / DIFFERENCES / f"{notebook}.csv"
    return _complete(results.read(path)[0]) if path.exists() else None


def _complete(differences: pd.DataFrame) -> pd.DataFrame:
    """With the column ``variant``, which a table lacks where no quantity has one."""
    return differences.assign(variant=differences["variant"].fillna("") if "variant" in differences else "")


def training_tolerance(differences: pd.DataFrame) -> pd.DataFrame:
    """Tolerance of every trained measurement, from the largest differences under changed arithmetic.

    It is :data:`MARGIN` times the largest difference at the layer or one of its :data:`NEIGHBOURS` on either side: a
    profile that moves as a whole crosses the stored one somewhere, and is close to it there by chance. All splits share
    a tolerance. The state after the final norm has no neighbours.
    """
    differences = _complete(differences)
    arithmetic = differences[(differences["changes"] == "arithmetic") & (differences["step"] > 0)]
    # Differences of a notebook with one model were first stored without its name.
    key = [column for column in KEY if column in differences]
    largest = arithmetic.groupby(key, sort=False)["largest_difference"].max().reset_index()
    body = largest["site"] != "final_norm"
    largest = largest.sort_values("layer", kind="stable")
    groups = largest.groupby([c for c in key if c not in ("layer", "site")] + [body], sort=False)["largest_difference"]
    around = groups.transform(lambda values: values.rolling(2 * NEIGHBOURS + 1, center=True, min_periods=1).max())
    return largest[key].assign(tolerance=MARGIN * around).sort_index()


def tolerance(stored: pd.DataFrame, differences: pd.DataFrame | None) -> "pd.Series[float]":
    """Greatest difference that each row of a stored table may show on another machine.

    The untouched model's rows have :data:`UNTOUCHED`; trained ones :func:`training_tolerance`, and never less than the
    untouched model's. An effect of :data:`DIFFERENCE_OF` has twice the largest tolerance of what it is a difference of
    at its step. An effect's interval, p-value and size have :func:`effect_tolerance`, or what was measured where
    that is more. Each is in the unit of its row.
    """
    suffixes = _suffixes(stored["quantity"])
    floor = stored["quantity"].map(UNTOUCHED)
    if bool((unknown := floor.isna() & (suffixes == "")).any()):
        raise InputError(
            f"The quantity {stored['quantity'][unknown].iloc[0]!r} has no tolerance: say in "
            "tolerances.UNTOUCHED how far it may move where nothing is trained."
        )
    # Shares of few examples move in large steps: two examples may always change their likeliest token.
    shares = stored["quantity"].str.contains("accuracy")
    floor = floor.where(~shares, floor.clip(lower=2.02 / stored["n"].astype(float)))
    allowed = floor.fillna(0.0)
    if differences is not None:
        trained = training_tolerance(differences)
        key = [column for column in KEY if column in trained]
        measured = stored[key].merge(trained, on=key, how="left")["tolerance"].set_axis(stored.index)
        allowed = measured.fillna(0.0).clip(lower=allowed)
        for effect, part in DIFFERENCE_OF.items():
            moved = trained.loc[trained["quantity"] == part].groupby("step")["tolerance"].max()
            rows = stored[(stored["quantity"] == effect) & (stored["step"] > 0)]
            allowed[rows.index] = allowed[rows.index].clip(lower=2 * rows["step"].map(moved).fillna(0.0))
    estimates = stored.assign(allowed=allowed)
    for suffix, quantity in sorted(set(zip(suffixes, stored["quantity"], strict=True))):
        if suffix:
            rows = stored[stored["quantity"] == quantity]
            derived = _with_estimates(rows, estimates, quantity.removesuffix(suffix))[suffix]
            allowed[rows.index] = allowed[rows.index].clip(lower=derived.set_axis(rows.index))
    return allowed


def _suffixes(quantities: "pd.Series[str]") -> "pd.Series[str]":
    """The suffix of each quantity that belongs to an effect of :data:`UNTOUCHED` beside its estimate; else empty."""

    def suffix(quantity: str) -> str:
        known = (s for s in inference.SUFFIXES if quantity.endswith(s) and quantity.removesuffix(s) in UNTOUCHED)
        return "" if quantity in UNTOUCHED else next(known, "")

    return quantities.map({quantity: suffix(quantity) for quantity in quantities.unique()})


def _with_estimates(rows: pd.DataFrame, table: pd.DataFrame, quantity: str) -> pd.DataFrame:
    """:func:`effect_tolerance` for each row, from the effects of ``quantity`` and their estimates' ``allowed``."""
    key = [column for column in results.KEY if column != "quantity"]
    effects = inference.effects(table, quantity).merge(table[table["quantity"] == quantity][[*key, "allowed"]], on=key)
    effects = rows[key].merge(effects, on=key, how="left")
    return effect_tolerance(effects, effects["allowed"])


def effect_tolerance(effects: pd.DataFrame, allowed: "pd.Series[float]") -> pd.DataFrame:
    r"""How far an effect's interval, p-value and size may move, from how far its estimate may.

    A p-value has no tolerance of its own: in every repetition it can be the smallest that the resampling can give. But
    what moves the mean of examples by at most t, and each example for itself, moves their standard error e by at most t
    as well. The ends of an interval are at most :data:`REACH` errors from the estimate, so they move by at most
    :math:`(1+\mathrm{REACH})\,t`; the standard score z of the p-value by :math:`(1+z)\,t/e`, down
    or up; and the size d of N examples by :math:`(2/\sqrt{N}+|d|)\,t/e`. Where the interval is one point, e is 0, and
    size and score may be any.

    ``effects`` holds rows of :func:`ridge_utils.inference.effects`, ``allowed`` the tolerance t of each estimate; the
    result has one column for each of :data:`ridge_utils.inference.SUFFIXES`.
    """
    error = (effects["high"] - effects["low"]) / 2 / REACH
    moved = (allowed / error).fillna(0.0)  # 0/0: what may not move does not
    score = stats.norm.isf(effects["p"] / 2).clip(max=_LARGEST_SCORE)
    scores = score - (1 + score) * moved, score + (1 + score) * moved
    larger, smaller = (2 * stats.norm.sf(moved_score.clip(lower=0.0)) for moved_score in scores)
    ends = (1 + REACH) * allowed
    return pd.DataFrame(
        {
            "_low": ends,
            "_high": ends,
            # Two of the resamples may always change sides.
            "_p": np.maximum(larger - effects["p"], effects["p"] - smaller).clip(lower=4 / (inference.RESAMPLES + 1)),
            "_effect_size": moved * (2 / np.sqrt(effects["n"].astype(float)) + effects["effect_size"].abs()),
        }
    )


def check(table: pd.DataFrame, name: str, parameters: Mapping[str, Any], trained: bool = True) -> str:
    """Compare a notebook's table with the stored one, and say which kinds of measurements agree, a line each.

    An AssertionError names measurements outside their :func:`tolerance`. Where the parameters are not those of the
    stored table, nothing is compared, and one sentence says so.

    ``trained`` compares what was measured after training as well. A notebook does without where it measures in other
    ways the states that another one compares: what it does to them shows on the untouched model.
    """
    stored, origin = results.read(results.FOLDER / f"{name}.csv")
    if not results.same_parameters(parameters, origin):
        return f"These are not the parameters of results/{name}.csv, so there is nothing to compare with."
    if not trained:
        table, stored = (rows[rows["step"] == 0] for rows in (table, stored))
        if stored.empty:
            return f"results/{name}.csv holds nothing of the untouched model, so nothing is compared."
    comparison = _compared(table, stored, name)
    comparison.require()
    lines = [f"compared with results/{name}.csv:"]
    after = comparison.rows["step"] > 0
    for label, rows in (("untouched model", comparison.rows[~after]), ("after training", comparison.rows[after])):
        for quantity, group in rows.groupby("quantity"):
            lines.append(f"{label}: {len(group)} values of {quantity} agree")
    return "\n".join(lines)


def settled(table: pd.DataFrame, name: str, parameters: Mapping[str, Any]) -> pd.DataFrame:
    """The stored table, where a notebook's own repeats it within every tolerance; else its own.

    The tables that a page shows of its own run are made of it, and so are the same to the last digit on every machine.
    """
    path = results.FOLDER / f"{name}.csv"
    stored, origin = results.read(path) if path.exists() else (table, {})
    with contextlib.suppress(InputError):  # other measurements
        if results.same_parameters(parameters, origin) and not len(_compared(table, stored, name).outside):
            return stored
    return table


def _compared(table: pd.DataFrame, stored: pd.DataFrame, name: str) -> results.Comparison:
    return results.compare(table, stored, tolerance(stored, differences_of(name)))
