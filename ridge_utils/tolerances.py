"""How far the numbers of a notebook move when nothing but the arithmetic changes, and the tolerances that follow.

Training amplifies rounding: two machines that differ in the seventeenth bit of one sum end with weights that differ
visibly. How visibly is measured here, by repeating a run under other conditions, and not guessed.
"""

import logging
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pandas.io.formats.style import Styler
from scipy import stats

from ridge_utils import cache, inference, results
from ridge_utils.errors import InputError

log = logging.getLogger(__name__)

#: Agreement required of the untouched model's values on any CPU (float32 forward pass, float64 estimator). Two examples
#: of 250 may change their likeliest token.
UNTOUCHED = {
    "predictive_information": 1e-3,
    "incremental_information": 1e-3,
    "sequence_information_all_reference": 1e-3,
    "sequence_information_aligned_reference": 1e-3,
    # Another machine can break a near tie between two tokens the other way, and that text then goes on differently.
    "sequence_information_all_generated": 2e-2,
    "sequence_information_aligned_generated": 5e-2,
    "early_exit_accuracy": 0.0081,
    "accuracy": 0.0081,
    "accuracy_scaled_on_id": 0.0081,
    "accuracy_scaled_on_ood": 0.0081,
    "loss": 1e-3,
    "loss_scaled_on_id": 1e-3,
    "loss_scaled_on_ood": 1e-3,
    "residual_scale": 1e-3,
    "signal_attention": 1e-4,
    "signal_after_first_attention": 1e-4,
    "last_token_attention": 1e-4,
    "first_token_attention": 1e-4,
    "chance_attention": 1e-9,
    "signal_attention_fall": 1e-4,
    "signal_attention_excess": 1e-4,
    "last_token_attention_excess": 1e-4,
    "scale_shift": 1e-3,
    "scaled_accuracy_gain": 0.0081,
    # The audit: first what follows from the states smoothly.
    "null_information": 1e-3,
    "null_information_high": 1e-3,
    "excess_information": 1e-3,
    "quadrature_error": 1e-3,
    "state_entropy": 1e-3,
    "target_entropy": 1e-3,
    "distinct_targets": 1e-9,
    "mean_cosine": 1e-4,
    "effective_rank": 0.1,
    "state_norm": 0.5,
    "ridge_fall": 2e-3,
    "final_norm_fall": 2e-3,
    "control_fall": 2e-3,
    "control_excess": 2e-3,
    "control_excess_fall": 2e-3,
    "v_information": 1e-2,
    "v_information_fall": 1e-2,
    "null_entropy": 1e-6,
    "class_share": 0.0081,
    "distance_correlation": 1e-3,
    "cka": 1e-3,
    "log_probability": 1e-3,
    "log_probability_change": 1e-3,
    "log_probability_gap": 1e-3,
    "ablation_contrast": 1e-3,
    "ablation_shift": 1e-3,
    "predictive_information_error": 1e-3,
    "exit_loss": 1e-2,
    "exit_divergence": 1e-2,
    # A neighbour can change, a critic is trained, and a share of examples moves by whole examples.
    "ksg_information": 2e-2,
    "info_nce": 5e-2,
    "probe_accuracy": 0.0081,
    "accuracy_change": 0.0081,
    "constant_accuracy": 0.0081,
    "majority_accuracy": 0.0081,
    "exit_accuracy_gain": 0.0081,
    # What is a rank or an argmax over layers can jump where two layers are nearly alike.
    "rank_correlation": 0.1,
    "peak_fall": 2e-2,
    "peak_difference": 2.0,
    "exit_layer_difference": 2.0,
    "ridge_layer": 1.0,
}
UNTOUCHED |= {f"{quantity}_deviation": allowed for quantity, allowed in UNTOUCHED.items()}

#: Effects that are differences of two values of another quantity, each of which may move by its tolerance. They need no
#: repetition of their own.
DIFFERENCE_OF = {
    "signal_attention_fall": "signal_after_first_attention",
    "signal_attention_excess": "signal_after_first_attention",
    "last_token_attention_excess": "signal_after_first_attention",
    "scale_shift": "residual_scale",
    "scaled_accuracy_gain": "accuracy",
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

#: Folder of the results files of :func:`repeat` in ``results/``, one per notebook, named as it is.
DIFFERENCES = "differences"

#: What :func:`repeat` stores of each condition.
COLUMNS = (
    "condition",
    "changes",
    "model",
    "split",
    "step",
    "layer",
    "site",
    "quantity",
    "variant",
    "value",
    "largest_difference",
)


@dataclass(frozen=True)
class Condition:
    """One way to repeat a run."""

    #: how tables and figures call it
    name: str
    #: ``arithmetic``, if only rounding differs, or ``seed``, if the training itself does
    changes: str
    #: parameters of the notebook that differ from its defaults
    parameters: dict[str, object] = field(default_factory=dict)
    #: environment variables
    environment: dict[str, str] = field(default_factory=dict)


#: What is kept of each run's provenance.
_KEPT = ("commit", "date", "seconds", "training", "machine", "versions", "sha256")

_AVX2 = {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"}

CONDITIONS = (
    Condition("1 thread", "arithmetic", environment={"OMP_NUM_THREADS": "1"}),
    Condition("float32", "arithmetic", {"precision": "float32"}),
    Condition("float32, AVX2 only", "arithmetic", {"precision": "float32"}, _AVX2),
    Condition("seed 1", "seed", {"training_seeds": [1]}),
    Condition("seed 2", "seed", {"training_seeds": [2]}),
)


def conditions(names: Sequence[str]) -> tuple[Condition, ...]:
    """The conditions of these names, or all of them where there are none.

    Raises:
        InputError: a name that no condition has.
    """
    known = {condition.name: condition for condition in CONDITIONS}
    if unknown := [name for name in names if name not in known]:
        raise InputError(f"There is no condition {unknown[0]!r}; choose from {', '.join(known)}.")
    return tuple(known[name] for name in names) or CONDITIONS


def repeat(
    notebook: str,
    reference: pd.DataFrame,
    parameters: Mapping[str, Any],
    folder: Path,
    conditions: Sequence[Condition] = CONDITIONS,
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Run a notebook once per condition, each condition with a cache of its own, and compare it with a reference.

    A run whose table is already in ``folder`` is not repeated, if its parameters are those asked for.

    Args:
        notebook: its name.
        reference: the table of the default run.
        parameters: of the default run.
        folder: where the executed notebooks, their tables and the conditions' caches go.
        conditions: how to repeat it.

    Returns:
        A table with the columns :data:`COLUMNS`, one row per condition and measurement, those of different sampling
        seeds taken together (``value`` is their mean, ``largest_difference`` the largest absolute difference of one of
        them from the reference, both in the quantity's unit); and each run's provenance by the condition's name.
    """
    tables, origins = [], {}
    for condition in conditions:
        name = condition.name.replace(",", "").replace(" ", "-")
        output = folder / notebook / f"{name}.ipynb"
        table_path = output.with_suffix(".csv")
        if not _has(table_path, {**parameters, **condition.parameters}):
            log.info("%s under the condition %r, into %s", notebook, condition.name, output)
            command = [sys.executable, "-m", "ridge_utils", "run", notebook, "-o", str(output), "-p", "compare=false"]
            for key, value in condition.parameters.items():
                command += ["-p", f"{key}={value}"]
            own_cache = {cache.ENVIRONMENT_VARIABLE: str(folder / f"cache-{name}")}
            subprocess.run(command, env=os.environ | condition.environment | own_cache, check=True)
        table, origin = results.read(table_path)
        origins[condition.name] = {key: origin.get(key) for key in _KEPT}
        # The seed is what such a condition changes, not what tells its measurements apart from the reference's.
        seed = reference["train_seed"].dropna().unique()
        table["train_seed"] = table["train_seed"].where(table["train_seed"].isna(), seed[0] if len(seed) else None)
        compared = results.compare(table, reference, 0.0).rows
        groups = compared.groupby(["model", "split", "step", "layer", "site", "quantity", "variant"], sort=False)
        summary = groups.agg(value=("value", "mean"), largest_difference=("difference", "max")).reset_index()
        tables.append(summary.assign(condition=condition.name, changes=condition.changes))
    return pd.concat(tables, ignore_index=True)[list(COLUMNS)], origins


def _has(path: Path, parameters: Mapping[str, Any]) -> bool:
    """Whether a run with these parameters is stored at ``path``; on which device they ran its provenance tells."""
    if not path.exists():
        return False
    _, origin = results.read(path)
    found = origin["parameters"]
    if {**found, "device": None} == {**parameters, "device": None}:
        return True
    log.warning("%s was made with other parameters; it is measured again.", path)
    return False


def training_tolerance(differences: pd.DataFrame) -> pd.DataFrame:
    """Tolerance of every trained measurement, from the largest differences under changed arithmetic.

    It is :data:`MARGIN` times the largest difference at the layer or one of its :data:`NEIGHBOURS` on either side: a
    profile that moves as a whole crosses the stored one somewhere, and is close to it there by chance.

    Args:
        differences: what :func:`repeat` gave.

    Returns:
        One row per (model, step, layer, site, quantity, variant) with ``tolerance``; all splits share it. The state
        after the final norm has no neighbours.
    """
    differences = _with_variant(differences)
    arithmetic = differences[(differences["changes"] == "arithmetic") & (differences["step"] > 0)]
    key = _key(differences)
    largest = arithmetic.groupby(key, sort=False)["largest_difference"].max().reset_index()
    body = largest["site"] != "final_norm"
    largest = largest.sort_values("layer", kind="stable")
    groups = largest.groupby([c for c in key if c not in ("layer", "site")] + [body], sort=False)["largest_difference"]
    around = groups.transform(lambda values: values.rolling(2 * NEIGHBOURS + 1, center=True, min_periods=1).max())
    return largest[key].assign(tolerance=MARGIN * around).sort_index()


def _key(differences: pd.DataFrame) -> list[str]:
    """What a tolerance belongs to. Differences of a notebook with one model were first stored without its name."""
    columns = ("model", "step", "layer", "site", "quantity", "variant")
    return [column for column in columns if column in differences]


def _with_variant(differences: pd.DataFrame) -> pd.DataFrame:
    """Differences with the column ``variant``, which their file lacks where no quantity has one."""
    return differences.assign(variant=differences["variant"].fillna("") if "variant" in differences else "")


def tolerance(stored: pd.DataFrame, differences: pd.DataFrame | None) -> "pd.Series[float]":
    """Greatest difference that each row of a stored table may show on another machine.

    The untouched model's rows have :data:`UNTOUCHED`; trained ones :func:`training_tolerance`, and never less than the
    untouched model's. An effect of :data:`DIFFERENCE_OF` has twice the largest tolerance of what it is a difference of
    at its step. An effect's interval, p-value and size have :func:`effect_tolerance`, or what was measured where
    that is more.

    Args:
        stored: table of measurements.
        differences: what :func:`repeat` gave; None for a notebook that trains nothing.

    Returns:
        One value per row of ``stored``, in its unit.

    Raises:
        InputError: a quantity that neither is in :data:`UNTOUCHED` nor belongs to an effect that is.
    """
    suffixes = _suffixes(stored["quantity"])
    floor = stored["quantity"].map(UNTOUCHED)
    if bool((unknown := floor.isna() & (suffixes == "")).any()):
        raise InputError(
            f"The quantity {stored['quantity'][unknown].iloc[0]!r} has no tolerance: say in "
            "reproducibility.UNTOUCHED how far it may move where nothing is trained."
        )
    # Shares of few examples move in large steps: two examples may always change their likeliest token.
    shares = stored["quantity"].str.contains("accuracy")
    floor = floor.where(~shares, floor.clip(lower=2.02 / stored["n"].astype(float)))
    allowed = floor.fillna(0.0)
    if differences is not None:
        trained = training_tolerance(differences)
        key = _key(trained)
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
    own = rows[key].merge(effects, on=key, how="left")
    return effect_tolerance(own, own["allowed"])


def effect_tolerance(effects: pd.DataFrame, allowed: "pd.Series[float]") -> pd.DataFrame:
    r"""How far an effect's interval, p-value and size may move, from how far its estimate may.

    A p-value has no tolerance of its own: in every repetition it can be the smallest that the resampling can give. But
    what moves the mean of examples by at most t, and each example for itself, moves their standard error e by at most t
    as well. The ends of an interval are at most :data:`REACH` errors from the estimate, so they move by at most
    :math:`(1+\mathrm{REACH})\,t`; the standard score z of the p-value by :math:`(1+z)\,t/e`; and the size d of N
    examples by :math:`(2/\sqrt{N}+|d|)\,t/e`.

    Args:
        effects: rows of :func:`ridge_utils.inference.effects`.
        allowed: tolerance t of each estimate.

    Returns:
        A row per effect with one column for each of :data:`ridge_utils.inference.SUFFIXES`. Where the interval is one
        point, e is 0, and the size and a smaller score may be any.
    """
    error = (effects["high"] - effects["low"]) / 2 / REACH
    moved = (allowed / error).fillna(0.0)  # 0/0: what may not move does not
    score = stats.norm.isf(effects["p"] / 2).clip(max=_LARGEST_SCORE)
    lowered = (score - (1 + score) * moved).clip(lower=0.0)
    ends = (1 + REACH) * allowed
    return pd.DataFrame(
        {
            "_low": ends,
            "_high": ends,
            # Two of the resamples may always change sides.
            "_p": (2 * stats.norm.sf(lowered) - effects["p"]).clip(lower=4 / (inference.RESAMPLES + 1)),
            "_effect_size": moved * (2 / np.sqrt(effects["n"].astype(float)) + effects["effect_size"].abs()),
        }
    )


def differences_of(notebook: str) -> pd.DataFrame | None:
    """The stored differences of a notebook, or None where there are none because it trains nothing.

    Raises:
        StorageError: they do not match their provenance.
    """
    path = results.FOLDER / DIFFERENCES / f"{notebook}.csv"
    return _with_variant(results.read(path)[0]) if path.exists() else None


def check(table: pd.DataFrame, name: str, parameters: Mapping[str, Any], trained: bool = True) -> str:
    """Compare a notebook's table with the stored one, and say in words that never change what was found.

    Args:
        table: the new table.
        name: of the results file.
        parameters: of the run.
        trained: compare what was measured after training as well. The audit's notebooks do without: they measure in
            other ways the states that other notebooks compare, and what they do to them shows on the untouched model.

    Returns:
        One line per kind of measurement; or one sentence, if the parameters are not those of the stored table.

    Raises:
        AssertionError: a measurement is outside its tolerance (:func:`tolerance`).
        StorageError: the stored table is missing or does not match its provenance.
    """
    stored, origin = results.read(results.FOLDER / f"{name}.csv")
    if not results.same_parameters(parameters, origin):
        return f"These are not the parameters of results/{name}.csv, so there is nothing to compare with."
    if not trained:
        table, stored = (rows[rows["step"] == 0] for rows in (table, stored))
    comparison = results.compare(table, stored, tolerance(stored, differences_of(name) if trained else None))
    comparison.require()
    lines = [f"compared with results/{name}.csv:"]
    after = comparison.rows["step"] > 0
    for label, rows in (("untouched model", comparison.rows[~after]), ("after training", comparison.rows[after])):
        for quantity, group in rows.groupby("quantity"):
            lines.append(f"{label}: {len(group)} values of {quantity} agree")
    return "\n".join(lines)


def other_notebooks() -> pd.DataFrame:
    """How far trained numbers of the notebooks beside ``predictive_information`` moved, and what they may.

    An effect's interval, p-value and size are left out: they move with their estimate.

    Returns:
        One row per notebook and quantity with ``values`` (how many), ``median_difference``, ``largest_difference``
        (under changed arithmetic), ``median_tolerance`` and ``largest_tolerance``, in the quantity's unit.
    """
    rows = []
    for path in sorted((results.FOLDER / DIFFERENCES).glob("*.csv")):
        if path.stem == "predictive_information":
            continue
        differences, _ = results.read(path)
        stored, _ = results.read(results.FOLDER / path.name)
        trained = (stored["step"] > 0) & (_suffixes(stored["quantity"]) == "")
        allowed = tolerance(stored, differences)[trained]
        for quantity, group in stored[trained].groupby("quantity"):
            chosen = (differences["quantity"] == quantity) & (differences["step"] > 0)
            moved = differences[chosen & (differences["changes"] == "arithmetic")]["largest_difference"]
            rows.append(
                {
                    "notebook": path.stem,
                    "quantity": quantity,
                    "values": len(group),
                    "median_difference": moved.median(),
                    "largest_difference": moved.max(),
                    "median_tolerance": allowed[group.index].median(),
                    "largest_tolerance": allowed[group.index].max(),
                }
            )
    columns = ["notebook", "quantity", "values", "median_difference", "largest_difference"]
    return pd.DataFrame(rows, columns=[*columns, "median_tolerance", "largest_tolerance"])


def other_notebooks_table(rows: pd.DataFrame) -> Styler:
    """What :func:`other_notebooks` found, as a table for people."""
    shown = rows.rename(columns=lambda column: column.replace("_", " ")).assign(
        notebook=rows["notebook"].where(~rows["notebook"].duplicated(), "")
    )
    numbers = [column for column in shown if shown[column].dtype == float]
    caption = "Trained numbers of the other notebooks: differences under changed arithmetic, and tolerances"
    return shown.style.hide(axis="index").format("{:.2g}", subset=numbers).set_caption(caption)


def ridge_layers(differences: pd.DataFrame, stored: pd.DataFrame) -> pd.DataFrame:
    """Ridge layer at each checkpoint under every condition, ID and OOD examples together.

    Args:
        differences: what :func:`repeat` gave.
        stored: the table that the runs were compared with.

    Returns:
        One row per run, the stored one first, with ``changes``, ``condition`` and one column per step; the ridge layer
        is the argmax of the mean profile over sampling seeds, the state after the final norm left out.
    """
    rows = pd.concat([stored.assign(condition="as stored", changes="nothing"), differences])
    chosen = (rows["quantity"] == "predictive_information") & (rows["split"] == "all") & (rows["site"] != "final_norm")
    mean = rows[chosen].groupby(["changes", "condition", "step", "layer"], sort=False)["value"].mean().reset_index()
    at_maximum = mean.loc[mean.groupby(["changes", "condition", "step"], sort=False)["value"].idxmax()]
    wide = at_maximum.pivot_table(index=["changes", "condition"], columns="step", values="layer", sort=False)
    return wide.astype(int)


def describe(differences: pd.DataFrame, stored: pd.DataFrame) -> str:
    """What :func:`repeat` found, in sentences for the reader (Markdown), from the numbers.

    Args:
        differences: what :func:`repeat` gave.
        stored: the table that the runs were compared with.
    """
    information = differences[differences["quantity"] == "predictive_information"]
    untouched = information[information["step"] == 0]["largest_difference"].max()
    last = int(information["step"].max())
    trained = information[information["step"] == last]
    largest = trained.groupby("changes")["largest_difference"].max()
    rounding, seed = largest["arithmetic"], largest["seed"]
    peak = stored[(stored["step"] == last) & (stored["quantity"] == "predictive_information")]["value"].max()
    verdict = "within" if untouched <= UNTOUCHED["predictive_information"] else "**outside**"
    lines = [
        f"- **Untouched:** no condition moves any value by more than {untouched:.1g} nats, {verdict} the "
        f"{UNTOUCHED['predictive_information']:g} required.",
        f"- **After {last} steps:** changed arithmetic moves a value by up to {rounding:.2g} nats, another training "
        f"seed by up to {seed:.2g}; the largest value of the stored run is {peak:.2g}.",
    ]
    if rounding >= seed:
        lines.append("- Changed arithmetic moves the trained numbers as far as another training seed does.")
    else:
        lines.append(
            f"- A training seed moves the trained numbers {seed / rounding:.1f} times as far "
            "as changed arithmetic does."
        )
    layers = ridge_layers(differences, stored)
    lines.append(f"- **Ridge layer:** {describe_ridge_layers(layers)}.")
    return "\n".join(lines)


def describe_ridge_layers(layers: pd.DataFrame) -> str:
    """The range of ridge layers over all runs at each checkpoint, as part of a sentence.

    Args:
        layers: what :func:`ridge_layers` gave.
    """
    texts = []
    for step in layers.columns:
        low, high = layers[step].min(), layers[step].max()
        place = f"layer {low}" if low == high else f"layers {low} to {high}"
        texts.append(f"{place} {f'after {step} steps' if step else 'untouched'}")
    return f"over all {len(layers)} runs, {', '.join(texts)}"


def facts(differences: pd.DataFrame) -> str:
    """The measured differences and tolerances in a form for text comparison: a line per checkpoint, rounded.

    What an effect has beside its estimate is left out.
    """
    allowed = training_tolerance(differences)
    allowed = allowed[_suffixes(allowed["quantity"]) == ""]
    allowed = allowed.assign(tolerance=allowed["tolerance"].clip(lower=allowed["quantity"].map(UNTOUCHED)))
    lines = [f"{len(differences)} differences under {differences['condition'].nunique()} conditions"]
    for (step, quantity), group in allowed.groupby(["step", "quantity"]):
        middle, largest = group["tolerance"].median(), group["tolerance"].max()
        lines.append(f"step {step}, {quantity}: tolerance {middle:.4f} (median over layers), {largest:.4f} (largest)")
    return "\n".join(lines)
