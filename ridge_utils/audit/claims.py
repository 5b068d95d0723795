"""The paper's nine claims against our tables: for each claim, model and task what we find, and whether it agrees.

A rule per claim takes the measurements of one model on one task and gives verdicts, none where the table lacks what it
needs. Its docstring is the rule in words, and the book prints it. A change counts where it is beyond its band, so that
the noise of a sample decides nothing.
"""

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from pandas.io.formats.style import Styler

from ridge_utils import formatting, paper
from ridge_utils.errors import InputError
from ridge_utils.reports import SIGNAL, decoding_summary, depth_summary, overfitting_summary, scaling_summary
from ridge_utils.statistics import by_third, ridge_summary

Agreement = Literal["yes", "partly", "no", "not measured"]

#: The verdicts on what was measured.
VERDICTS: tuple[Agreement, ...] = ("yes", "partly", "no")
NOT_MEASURED: Agreement = "not measured"

#: Columns of the table that :func:`compare` gives.
COLUMNS = ("claim", "model", "task", "source", "when", "ours", "paper", "agrees", "why", "page")

#: Half-width of the bands of information, attention and accuracy, in standard deviations or standard errors.
SIGMAS = paper.INFORMATION_SIGMAS
#: Half-width of the bands of residual scales and of what they do, in standard deviations over fits.
SCALE_SIGMAS = paper.SCALE_SIGMAS
#: Layers that are at most so far apart count as the same place.
LAYERS_APART = 1
#: Spearman's correlation from which on two profiles have the same shape.
SAME_SHAPE = 0.5

#: The columns of a table that hold one model on one task.
_CASE = ["model", "task", "source"]
_CUT = re.compile(r"\[:\d+\]$")
#: Of the verdicts in the figure; safe for colour-blind readers, and every cell says its verdict in words.
_COLOURS = {"yes": "#56b4e9", "partly": "#f0e442", "no": "#e69f00", NOT_MEASURED: "#ffffff"}
#: Names that a stored table of the paper's models would carry.
_PAPERS_OWN = {
    "GPT-2 Small": ("gpt2", "openai-community/gpt2"),
    "GPT-2 Medium": ("gpt2-medium", "openai-community/gpt2-medium"),
    "Qwen-2.5 0.5B": ("Qwen/Qwen2.5-0.5B",),
    "Llama-3.1 8B": ("meta-llama/Llama-3.1-8B",),
}


@dataclass(frozen=True)
class Verdict:
    """What a rule says of one model on one task in one state."""

    #: checkpoint, and whatever else tells it from the other verdicts on the same table
    when: str
    #: our numbers, in a few words
    ours: str
    #: whether they agree with the claim
    agrees: Agreement
    #: what the data show of the reason, if they do not agree
    why: str = ""


def peak(table: pd.DataFrame) -> list[Verdict]:
    """Judge C1 at each checkpoint, ID and OOD examples together.

    Yes: information is largest after a block that is not the last one, and the fall from there to the last block is
    beyond its band of :data:`SIGMAS` σ over seeds. Otherwise no.
    """
    if not _has(table, "predictive_information", "all"):
        return []
    rows = table[(table["quantity"] == "predictive_information") & (table["split"] == "all")]
    ridges = ridge_summary(rows, sigmas=SIGMAS).sort_values("step")
    normed = {row.step: row for row in ridge_summary(_normed_last(rows), sigmas=SIGMAS).itertuples()}
    peaks = [row.step for row in ridges.itertuples() if _peaks(row)]
    out = []
    for row in ridges.itertuples():
        agrees: Agreement = "yes" if _peaks(row) else "no"
        why = [_before_the_blocks(row), _after_the_norm(normed[row.step]), _lost(row.step, peaks)]
        told = "" if _peaks(row) else " ".join(filter(None, why))
        out.append(Verdict(_state(row.step, ridges["step"]), _profile(row), agrees, told))
    return out


def generalisation(table: pd.DataFrame) -> list[Verdict]:
    """Judge C2 at each checkpoint on OOD examples.

    Yes: information has a peak before the last block, as in C1, and the number of the layer with the best early-exit
    accuracy differs from the peak's by at most :data:`LAYERS_APART`. Partly: the two layers are that close, but there
    is no such peak; or they are not that close, but the accuracy at the layer of the largest information is not below
    the best by more than :data:`SIGMAS` standard errors of a difference of two shares. Otherwise no. Not measured where
    no layer's early exit is ever right. Of several best layers, the nearest counts.
    """
    if not (_has(table, "predictive_information", "ood") and _has(table, "early_exit_accuracy", "ood")):
        return []
    ridges = ridge_summary(table[table["split"] == "ood"], sigmas=SIGMAS).sort_values("step")
    out = []
    for row in ridges.itertuples():
        when = _state(row.step, ridges["step"])
        accuracy, n = _early_exit(table, "ood", row.step)
        if not accuracy.max() > 0:
            out.append(Verdict(when, "the early exit of no layer is ever right on OOD examples", NOT_MEASURED))
            continue
        best = min(accuracy.index[accuracy == accuracy.max()], key=lambda layer: abs(layer - row.ridge_layer))
        near = abs(best - row.ridge_layer) <= LAYERS_APART
        at_ridge = accuracy[row.ridge_layer]
        below = accuracy.max() - at_ridge > SIGMAS * _standard_error(accuracy.max(), at_ridge, n)
        ours = (
            f"information is largest at layer {row.ridge_layer} of {row.blocks}, accuracy at layer {best} "
            f"({_percent(accuracy.max())}; {_percent(at_ridge)} at layer {row.ridge_layer})"
        )
        if near and _peaks(row):
            out.append(Verdict(when, ours, "yes"))
        elif near:
            out.append(Verdict(when, ours, "partly", "Information has no peak before the last block."))
        elif not below:
            why = "The accuracies at the two layers do not differ by more than the noise."
            out.append(Verdict(when, ours, "partly", why))
        else:
            out.append(Verdict(when, ours, "no", "Accuracy is better elsewhere by more than the noise."))
    return out


def memorisation(table: pd.DataFrame) -> list[Verdict]:
    """Judge C3 as the paper infers it: this is an inference, no test of memorisation.

    Compared are the layer of the largest information with the last block, at the last checkpoint; and, at the last
    block, the middle one of the fine-tuned checkpoints (the earlier one of a middle pair) with the last one. Yes: ID
    early-exit accuracy rises, OOD accuracy falls and information (ID and OOD together) falls. Partly: ID accuracy
    rises, and only one of the others falls. Otherwise no. An accuracy rises or falls where the change is more than
    :data:`SIGMAS` standard errors of a difference of two shares, information where it is beyond its band of
    :data:`SIGMAS` σ over seeds. Not measured over the layers where the last block has the largest information.
    """
    quantities = [("predictive_information", "all"), ("early_exit_accuracy", "id"), ("early_exit_accuracy", "ood")]
    steps = sorted(int(step) for step in table["step"].unique() if step > 0)
    if not steps or not all(_has(table, *needed) for needed in quantities):
        return []
    last = steps[-1]
    rows = table[table["split"] == "all"]
    row = next(ridge_summary(rows[rows["step"] == last], sigmas=SIGMAS).itertuples())
    layers, ends = (row.ridge_layer, row.blocks), (last, last)
    fall = (row.at_ridge, row.at_last_block, -row.to_last_block, row.to_last_block_half_width)
    when = f"{_state(last, steps)}, from layer {row.ridge_layer} to {row.blocks}"
    out = [_symptoms(table, when, layers, ends, fall)]
    if row.ridge_layer == row.blocks:
        why = "No layer comes after the one with the largest information, so there is nothing to compare."
        out[0] = replace(out[0], agrees=NOT_MEASURED, why=why)
    middle = steps[(len(steps) - 1) // 2]
    if middle < last:
        at_end = rows[(rows["quantity"] == "predictive_information") & _block(rows, row.blocks)]
        before, after = (at_end.loc[at_end["step"] == step, "value"].mean() for step in (middle, last))
        change = (before, after, *_change(at_end, middle, last, SIGMAS))
        when = f"last block, from step {middle} to {last}"
        out.append(_symptoms(table, when, (row.blocks, row.blocks), (middle, last), change))
    return out


def middle_gain(table: pd.DataFrame) -> list[Verdict]:
    """Judge C4 at each checkpoint, ID and OOD examples together.

    Yes: of the three thirds of the blocks, the middle one has the largest mean gain, and its band of :data:`SIGMAS` σ
    over seeds lies above that of the last third. Otherwise no.
    """
    if not _has(table, "incremental_information", "all"):
        return []
    thirds = by_third(table[table["split"] == "all"], "incremental_information", SIGMAS)
    steps = sorted(thirds["step"].unique())
    out = []
    for step in steps:
        own = thirds[thirds["step"] == step].set_index("third")
        ours = "mean gain of the first, middle and last third: " + ", ".join(
            _with_band(own.loc[third, "mean"], own.loc[third, "half_width"], digits=4)
            for third in ("first", "middle", "last")
        )
        largest = own["mean"].idxmax()
        if largest != "middle":
            verdict = Verdict("", ours, "no", f"The {largest} third gains most.")
        elif own.loc["middle", "low"] > own.loc["last", "high"]:
            verdict = Verdict("", ours, "yes")
        else:
            verdict = Verdict("", ours, "no", "The bands of the middle and the last third overlap.")
        out.append(replace(verdict, when=_state(step, steps)))
    return out


def scaling(table: pd.DataFrame) -> list[Verdict]:
    """Judge C5 at the checkpoint whose scales were fitted.

    Two things are asked: that the last block's scale is lower when fitted on OOD than on ID data, and that the scales
    fitted on OOD data raise OOD accuracy; each by more than :data:`SCALE_SIGMAS` σ of the difference over fits. Yes:
    both. Partly: one. No: neither.
    """
    needed = [("residual_scale", "id"), ("residual_scale", "ood"), ("accuracy", "ood")]
    if not all(_has(table, *pair) for pair in [*needed, ("accuracy_scaled_on_ood", "ood")]):
        return []
    steps = sorted(table["step"].unique())
    out = []
    for step in steps:
        rows = table[table["step"] == step]
        last = rows[(rows["quantity"] == "residual_scale") & (rows["layer"] == rows["layer"].max())]
        difference = _paired(last[last["split"] == "id"], last[last["split"] == "ood"], ["train_seed", "sample_seed"])
        ood = rows[rows["split"] == "ood"].set_index("quantity")
        before, after = ood.loc[["accuracy"]], ood.loc[["accuracy_scaled_on_ood"]]
        gain = _paired(before, after, ["train_seed"])
        (fall, spread), (rise, noise) = (_band(change, SCALE_SIGMAS) for change in (difference, gain))
        scales = scaling_summary(rows)["last_block"]
        ours = (
            f"last block's scale {scales['id']:.3f} fitted on ID, {scales['ood']:.3f} on OOD (difference "
            f"{_with_band(fall, spread, sign=True)} over {len(difference)} pairs of fits); OOD accuracy "
            f"{_percent(before['value'].mean())} before, {_percent(after['value'].mean())} after"
        )
        lower, better = -fall > spread, rise > noise
        missing = [
            sentence
            for holds, sentence in (
                (lower, "The last block's scale is not lower on OOD data beyond the band."),
                (better, "OOD accuracy does not improve beyond the band."),
            )
            if not holds
        ]
        out.append(Verdict(_state(step, steps), ours, _of(lower, better), " ".join(missing)))
    return out


def decoding(table: pd.DataFrame) -> list[Verdict]:
    """Judge C6 for each text (generated or reference) and each reading of the sequence kernel.

    Two things are asked: that the mean of information over the blocks grows at every measured number of decoding steps,
    and that each profile over the blocks has a rank correlation of at least :data:`SAME_SHAPE` with the last one. Yes:
    both. Partly: one. No: neither.
    """
    if not table["quantity"].str.startswith("sequence_information_").any():
        return []
    profiles = decoding_summary(table)
    kernels = {"all": "all pairs of steps", "aligned": "the same steps only"}
    found: dict[tuple[str, str], Verdict] = {}
    for (text, pairs), rows in profiles.groupby(["continuation", "pairs"], sort=False):
        rows = rows.sort_values("decoding_step")
        if len(rows) < 2:
            continue
        first, last = rows.iloc[0], rows.iloc[-1]
        # A flat profile has no rank correlation (NaN), and so not the last one's shape.
        low = rows["rank_correlation"].min(skipna=False)
        grows, stays = bool((rows["level"].diff().dropna() > 0).all()), bool(low >= SAME_SHAPE)
        ours = (
            f"mean over the blocks {first['level']:.3f} nats at t = {first['decoding_step']}, {last['level']:.3f} at "
            f"t = {last['decoding_step']}; lowest rank correlation with the last profile {low:.2f}"
        )
        missing = ([] if grows else ["The level does not grow at every step."]) + (
            [] if stays else ["The order of the layers changes."]
        )
        when = f"untouched, {text} text, kernel over {kernels[pairs]}"
        found[text, pairs] = Verdict(when, ours, _of(grows, stays), " ".join(missing))
    for (text, pairs), verdict in found.items():
        other = next((p for t, p in found if t == text and p != pairs), None)
        if verdict.agrees != "yes" and other and found[text, other].agrees == "yes":
            # The paper's words fit both kernels, see the page on decoding steps.
            also = f"It agrees with the kernel over {kernels[other]}: the paper's words fit both."
            found[text, pairs] = replace(verdict, why=f"{verdict.why} {also}")
    return list(found.values())


def depth(table: pd.DataFrame) -> list[Verdict]:
    """Judge C7 for the models after their fine-tuning, as the paper does, ID and OOD examples together.

    A peak is one as in C1. Yes: the shallower of the measured depths have none, and all depths from some number of
    blocks on have one. Partly: the shallowest has none and the deepest has one, but not in that order in between.
    Otherwise no. Not measured with fewer than two depths.
    """
    if not _has(table, "predictive_information", "all"):
        return []
    ridges = depth_summary(table[table["split"] == "all"])
    tuned = ridges[ridges["step"] > 0].sort_values("step").groupby("model", sort=False).tail(1)
    out = []
    for when, rows in (("fine-tuned", tuned),):
        if len(rows) < 2:
            continue
        rows = rows.sort_values("blocks")
        has_peak = {int(row.blocks): _peaks(row) for row in rows.itertuples()}
        ours = ", ".join(f"{'peak' if found else 'no peak'} at {blocks}" for blocks, found in has_peak.items())
        found = list(has_peak.values())
        shallowest, deepest = min(has_peak), max(has_peak)
        if not found[0] and found[-1]:
            in_order = found == sorted(found)
            why = "" if in_order else "The depths with a peak are not all deeper than those without."
            agrees: Agreement = "yes" if in_order else "partly"
        elif all(found):
            agrees, why = "no", f"Already {shallowest} blocks have a peak; a lower threshold is not ruled out."
        elif not any(found):
            agrees, why = "no", f"Not even {deepest} blocks have a peak; a higher threshold is not ruled out."
        else:
            agrees, why = "no", "The peak comes and goes with depth."
        out.append(Verdict(when, f"{ours} blocks", agrees, why))
    return out


def overfitting(table: pd.DataFrame) -> list[Verdict]:
    """Judge C8 from the checkpoint with the lowest ID loss to the last one, where the ID loss is higher.

    Information at the last block rises where the change is beyond its band of :data:`SIGMAS` σ over seeds. Yes: it
    rises on ID and on OOD examples. Partly: on one of them. No: on neither. Not measured where the run never passes its
    optimum, or where no checkpoint has a lower ID loss than the untouched model: then there was no optimum to pass.
    """
    needed = [("loss", "id"), ("predictive_information", "id"), ("predictive_information", "ood")]
    if not all(_has(table, *pair) for pair in needed):
        return []
    losses = overfitting_summary(table).sort_values("step")
    best, end = losses[losses["is_optimum"]].iloc[0], losses.iloc[-1]
    when = f"from step {best['step']} to {end['step']}"
    if best["step"] == end["step"]:
        ours = f"ID loss is lowest at the end ({end['loss_id']:.3f} nats)"
        return [Verdict(when, ours, NOT_MEASURED, "The run never passes its optimum.")]
    if best["step"] == 0:
        ours = f"ID loss is lowest untouched ({best['loss_id']:.3f} nats)"
        why = "No checkpoint improves on the untouched model, so there is no optimum to pass."
        return [Verdict(when, ours, NOT_MEASURED, why)]
    rows = table[(table["quantity"] == "predictive_information") & _block(table, best["blocks"])]
    parts, rises, lower = [f"ID loss {best['loss_id']:.3f} to {end['loss_id']:.3f} nats"], [], []
    for split in ("id", "ood"):
        change, half_width = _change(rows[rows["split"] == split], best["step"], end["step"], SIGMAS)
        rises.append(change > half_width)
        before, after = best[f"at_last_block_{split}"], end[f"at_last_block_{split}"]
        parts.append(
            f"{split.upper()} information at the last block {before:.3f} to {after:.3f} (change "
            f"{_with_band(change, half_width, sign=True)})"
        )
        if not rises[-1]:
            verb = "falls" if -change > half_width else "does not move beyond its band"
            lower.append(f"{split.upper()} information at the last block {verb}.")
    return [Verdict(when, "; ".join(parts), _of(*rises), " ".join(lower))]


def attention(table: pd.DataFrame) -> list[Verdict]:
    """Judge C9 at each checkpoint, for ID and for OOD examples; the signal is taken without the first token.

    Two things are asked: that attention to the signal is largest mid-to-late (after the first third of the blocks, and
    before the last block), is above what uniform attention would give there, and falls to the last block; and that in
    the last block the last token itself gets more than the signal. The fall and the lead are to exceed their band of
    :data:`SIGMAS` σ over seeds. Yes: both. Partly: one. No: neither.
    """
    if not set(table["quantity"]) >= {SIGNAL, "last_token_attention"}:
        return []
    ridges = ridge_summary(table, SIGNAL, SIGMAS).sort_values(["step", "split"])
    out = []
    for row in ridges.itertuples():
        chosen = (table["split"] == row.split) & (table["step"] == row.step) & _block(table, row.blocks)
        last = {name: rows for name, rows in table[chosen].groupby("quantity")}
        ahead = _band(_paired(last[SIGNAL], last["last_token_attention"], ["train_seed", "sample_seed"]), SIGMAS)
        itself = last["last_token_attention"]["value"].mean()
        chance = last["chance_attention"]["value"].mean() if "chance_attention" in last else 0.0
        late, above = (row.ridge_layer - 0.5) / row.blocks > 1 / 3, row.at_ridge > chance
        falls = late and above and row.ridge_layer < row.blocks and bool(row.to_last_block_beyond_band)
        looks = ahead[0] > ahead[1]
        ours = (
            f"signal {row.at_ridge:.3f} at block {row.ridge_layer} of {row.blocks}, {row.at_last_block:.3f} in the "
            f"last (fall {_with_band(row.to_last_block, row.to_last_block_half_width)}); the last token itself gets "
            f"{itself:.3f} there"
        )
        missing = []
        if not late:
            missing.append("Attention to the signal is largest in the first third of the blocks.")
        elif not above:
            missing.append(f"Uniform attention would give the signal {chance:.3f}, no less than its largest.")
        elif not falls:
            missing.append("Attention to the signal does not fall to the last block beyond its band.")
        if not looks:
            missing.append("In the last block the last token does not get more than the signal beyond the band.")
            if "first_token_attention" in last and last["first_token_attention"]["value"].mean() > row.at_last_block:
                first = last["first_token_attention"]["value"].mean()
                missing.append(f"The first token, another position, gets {first:.3f} there.")
        when = f"{_state(row.step, ridges['step'])}, {row.split.upper()}"
        out.append(Verdict(when, ours, _of(falls, looks), " ".join(missing)))
    return out


#: For each claim the notebook whose tables it is judged by, and the rule.
RULES: dict[str, tuple[str, Callable[[pd.DataFrame], list[Verdict]]]] = {
    "C1": ("predictive_information", peak),
    "C2": ("predictive_information", generalisation),
    "C3": ("predictive_information", memorisation),
    "C4": ("incremental_information", middle_gain),
    "C5": ("residual_scaling", scaling),
    "C6": ("multi_token", decoding),
    "C7": ("truncation", depth),
    "C8": ("overfitting", overfitting),
    "C9": ("attention", attention),
}


def pages() -> list[str]:
    """The notebooks whose reference runs the claims are judged by."""
    return list(dict.fromkeys(page for page, _ in RULES.values()))


def compare(references: Mapping[str, Mapping[str, pd.DataFrame]]) -> pd.DataFrame:
    """Judge every claim by every reference run.

    Args:
        references: tables of measurements by notebook and, within it, by profile; notebooks of no claim are left out.

    Returns:
        Rows with the columns :data:`COLUMNS`, in the order of the claims: one per claim, model, task and ``when``;
        ``ours`` and ``paper`` are short texts with the numbers, ``agrees`` is ``yes``, ``partly``, ``no`` or ``not
        measured``, ``why`` the reason if the data show one, ``page`` the notebook. A claim that no run speaks to has
        one row ``not measured`` for every model and task that another claim was judged by (or one alone, with empty
        names, where there are none at all).
    """
    tables = [table for page in pages() for table in references.get(page, {}).values()]
    every = dict.fromkeys(case for table in tables for case in _cases(table))
    # Networks trained from scratch come last: the paper has none.
    cases = sorted(every, key=lambda case: case[0].startswith("random:")) or [("", "", "")]
    rows = []
    for claim in paper.claims().itertuples():
        page, judge = RULES[claim.id]
        found: dict[tuple[str, ...], list[Verdict]] = {case: [] for case in cases}
        for table in references.get(page, {}).values():
            for case, own in _cases(table).items():
                found[case] += judge(own)
        for case, verdicts in found.items():
            for said in verdicts or [Verdict("", "", NOT_MEASURED)]:
                rows.append((claim.id, *case, said.when, said.ours, claim.shown, said.agrees, said.why, page))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def summary(frame: pd.DataFrame) -> pd.DataFrame:
    """How many verdicts of each kind every claim has on every model and task.

    Args:
        frame: what :func:`compare` gave.

    Returns:
        A row per claim, and columns of three levels, ``model``, ``task`` and verdict (``yes``, ``partly``, ``no``);
        zeros where nothing was measured.
    """
    cases = list(dict.fromkeys(zip(frame["model"], frame["task"], strict=True)))
    columns = pd.MultiIndex.from_tuples(
        [(*case, verdict) for case in cases for verdict in VERDICTS], names=["model", "task", "agrees"]
    )
    counts = frame.groupby(["claim", "model", "task", "agrees"]).size()
    wide = counts.unstack(["model", "task", "agrees"], fill_value=0)  # noqa: PD010
    return wide.reindex(index=list(dict.fromkeys(frame["claim"])), columns=columns, fill_value=0).astype(int)


def verdict_lines(frame: pd.DataFrame) -> str:
    """How often each claim was found to hold, a line per claim.

    Args:
        frame: what :func:`compare` gave.
    """
    lines = []
    for claim, rows in frame.groupby("claim", sort=False):
        counts = rows["agrees"].value_counts()
        parts = [f"{counts.get(verdict, 0)} {verdict}" for verdict in VERDICTS]
        lines.append(f"{claim}: {', '.join(parts) if set(counts.index) & set(VERDICTS) else NOT_MEASURED}")
    return "\n".join(lines)


def chosen(shown: Sequence[str]) -> list[str]:
    """The claims to show: those named, or all of them where none is.

    Raises:
        InputError: there is no such claim.
    """
    if unknown := [claim for claim in shown if claim not in RULES]:
        raise InputError(f"There is no claim {unknown[0]!r}; claims_shown may name {', '.join(RULES)}.")
    return [claim for claim in RULES if claim in shown or not shown]


def rule(claim: str) -> str:
    """The rule of a claim in words, with its thresholds."""
    words = " ".join((inspect.getdoc(RULES[claim][1]) or "").split())
    return re.sub(r":data:`(\w+)`", lambda found: f"{globals()[found[1]]:g}", words)


def claim_text(frame: pd.DataFrame, claim: str) -> str:
    """A claim, the paper's evidence, our rule, and what was not measured (Markdown).

    Args:
        frame: what :func:`compare` gave.
        claim: C1 to C9.
    """
    stated = paper.claims().set_index("id").loc[claim]
    rows = frame[frame["claim"] == claim]
    page = rows["page"].iloc[0]
    unmeasured = rows[(rows["agrees"] == NOT_MEASURED) & (rows["ours"] == "") & (rows["model"] != "")]
    parts = [
        f"**{stated['statement']}** The paper's evidence: {stated['evidence']}.",
        f"**The paper shows:** {stated['shown']}.",
        f"**Our rule.** {rule(claim)} The measurements stand in [{page}]({page}.ipynb).",
    ]
    if len(unmeasured) == len(rows) or not len(rows[rows["model"] != ""]):
        parts.append("**Not measured** in any reference run.")
    elif len(unmeasured):
        cases = zip(unmeasured["model"], unmeasured["task"], strict=True)
        parts.append(f"**Not measured:** {'; '.join(f'{model}, {task}' for model, task in cases)}.")
    return "\n\n".join(parts)


def claim_table(frame: pd.DataFrame, claim: str) -> Styler:
    """What we find on a claim and whether it agrees, as a table for people.

    Args:
        frame: what :func:`compare` gave.
        claim: C1 to C9.
    """
    rows = frame[(frame["claim"] == claim) & (frame["ours"] != "")]
    shown = rows[["model", "task", "when", "ours", "agrees", "why"]].rename(columns={"why": "why not, if known"})
    caption = f"{claim}, what we find; information in nats, ± is the band of the rule"
    style = formatting.styled(shown, caption).set_table_attributes('class="sentences"')
    return style.map(_coloured, subset=["agrees"])


def scope(frame: pd.DataFrame) -> str:
    """Which of the paper's models are among ours, in a sentence or two.

    Args:
        frame: what :func:`compare` gave.
    """
    ours = list(dict.fromkeys(model for model in frame["model"] if model))
    theirs = [
        f"{row.model} ({row.blocks} blocks{', measured here' if set(_PAPERS_OWN[row.model]) & set(ours) else ''})"
        for row in paper.models().itertuples()
    ]
    any_own = any(set(names) & set(ours) for names in _PAPERS_OWN.values())
    lead = f"The paper measures {', '.join(theirs[:-1])} and {theirs[-1]}"
    tail = "" if any_own else ", none of which is measured here"
    here = f"The models measured here: {', '.join(ours)}." if ours else "No reference run is stored yet."
    return f"{lead}{tail}. {here}"


def claims_figure(frame: pd.DataFrame) -> Figure:
    """Claims in rows, models and tasks in columns; every cell says how often each verdict was found.

    Blue where all verdicts are yes, orange where all are no, yellow where they differ or are partly.

    Args:
        frame: what :func:`compare` gave.
    """
    counts = summary(frame)
    cases = list(dict.fromkeys((model, task) for model, task, _ in counts.columns))
    figure, ax = plt.subplots(figsize=(max(5.0, 2.0 + 1.3 * len(cases)), 1.6 + 0.42 * len(counts)))
    for y, claim in enumerate(counts.index):
        for x, case in enumerate(cases):
            numbers = {verdict: counts[(*case, verdict)][claim] for verdict in VERDICTS}
            found = {verdict: number for verdict, number in numbers.items() if number}
            words = ", ".join(f"{number} {verdict}" for verdict, number in found.items()) or "–"
            colour = _COLOURS[_overall(found)]
            ax.add_patch(Rectangle((x - 0.5, y - 0.5), 1, 1, facecolor=colour, edgecolor="white", linewidth=2))
            ax.text(
                x, y, formatting.replace(", ", "\n", 1) if len(found) > 2 else words, ha="center", va="center", size=8
            )
    ax.set_xlim(-0.5, len(cases) - 0.5)
    ax.set_ylim(len(counts) - 0.5, -0.5)
    ax.set_yticks(range(len(counts)), counts.index)
    ax.set_xticks(range(len(cases)), [f"{model}\n{task}" for model, task in cases], rotation=30, ha="right", size=8)
    ax.tick_params(length=0)
    for side in ax.spines.values():
        side.set_visible(False)
    ax.set_title("Does the claim hold? (checkpoints and splits judged; –: not measured)", fontsize=10)
    return figure


def _cases(table: pd.DataFrame) -> dict[tuple[str, ...], pd.DataFrame]:
    """The parts of a table by model, task and source; cut models belong to the model that they were cut from."""
    whole = table.assign(_whole=table["model"].str.replace(_CUT, "", regex=True))
    groups = whole.groupby(["_whole", *_CASE[1:]], sort=False)
    return {tuple(map(str, case)): rows.drop(columns="_whole") for case, rows in groups}


def _has(table: pd.DataFrame, quantity: str, split: str) -> bool:
    return bool(((table["quantity"] == quantity) & (table["split"] == split)).any())


def _block(table: pd.DataFrame, layer: int) -> "pd.Series[bool]":
    return (table["site"] == "block") & (table["layer"] == layer)


def _state(step: int, steps: Sequence[int]) -> str:
    if not step:
        return "untouched"
    return f"step {step}, the last" if step == max(steps) else f"step {step}"


def _peaks(row: Any) -> bool:
    """Whether a row of a ridge summary has a peak between the first and the last block, with a fall beyond its band."""
    return 0 < row.ridge_layer < row.blocks and bool(row.to_last_block_beyond_band)


def _profile(row: Any) -> str:
    if row.ridge_layer == row.blocks:
        return f"largest at the last block, {row.blocks}: {row.at_ridge:.3f} nats"
    fall = _with_band(row.to_last_block, row.to_last_block_half_width)
    return (
        f"largest at layer {row.ridge_layer} of {row.blocks}: {row.at_ridge:.3f} nats; {row.at_last_block:.3f} at the "
        f"last block (fall {fall})"
    )


def _normed_last(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows with the state after the final norm in the last block's place, as in transformers' hidden states."""
    if not (rows["site"] == "final_norm").any():
        return rows
    body = rows[~_block(rows, rows["layer"].max())]
    return body.assign(site=body["site"].replace("final_norm", "block"))


def _before_the_blocks(row: Any) -> str:
    return "It is largest before the first block." if row.ridge_layer == 0 else ""


def _after_the_norm(row: Any) -> str:
    if not _peaks(row):
        return ""
    return (
        f"It would agree with the last layer taken after the final norm ({row.at_last_block:.3f} nats, a fall of "
        f"{_with_band(row.to_last_block, row.to_last_block_half_width)} from layer {row.ridge_layer}); which of the "
        "two the paper takes is open."
    )


def _lost(step: int, peaks: Sequence[int]) -> str:
    earlier = [f"step {other}" if other else "untouched" for other in peaks if other < step]
    return f"Earlier checkpoints have a peak ({', '.join(earlier)})." if earlier else ""


def _early_exit(table: pd.DataFrame, split: str, step: int) -> "tuple[pd.Series[float], int]":
    """Accuracy by layer, the mean over training seeds, and the number of examples."""
    chosen = (table["quantity"] == "early_exit_accuracy") & (table["split"] == split) & (table["step"] == step)
    rows = table[chosen]
    return rows.groupby(rows["layer"].astype(int))["value"].mean(), int(rows["n"].min())


def _symptoms(
    table: pd.DataFrame,
    when: str,
    layers: tuple[int, int],
    steps: tuple[int, int],
    information: tuple[float, float, float, float],
) -> Verdict:
    """What C3 asks, from one layer and step to another; ``information``: before, after, change, half-width."""
    before, after, change, half_width = information
    moves, parts = {}, []
    for split in ("id", "ood"):
        (first, n), (last, _) = (_early_exit(table, split, step) for step in steps)
        start, end = first[layers[0]], last[layers[1]]
        moves[split] = _sign(end - start, SIGMAS * _standard_error(start, end, n))
        parts.append(f"{split.upper()} accuracy {_percent(start)} to {_percent(end)}")
    falls = _sign(change, half_width) < 0
    parts.append(f"information {before:.3f} to {after:.3f} (change {_with_band(change, half_width, sign=True)})")
    asked = {
        "ID accuracy does not rise": moves["id"] > 0,
        "OOD accuracy does not fall": moves["ood"] < 0,
        "information does not fall": falls,
    }
    missing = [sentence for sentence, holds in asked.items() if not holds]
    agrees: Agreement = "no"
    if not missing:
        agrees = "yes"
    elif moves["id"] > 0 and len(missing) == 1:
        agrees = "partly"
    why = f"{formatting.sentence(', '.join(missing))[:-1]} beyond the noise." if missing else ""
    return Verdict(when, "; ".join(parts), agrees, why)


def _paired(before: pd.DataFrame, after: pd.DataFrame, keys: list[str]) -> "pd.Series[float]":
    """Differences between rows of the same seeds."""
    pairs = after.merge(before, on=keys, suffixes=("", "_before"))
    return pairs["value"] - pairs["value_before"]


def _change(rows: pd.DataFrame, before: int, after: int, sigmas: float) -> tuple[float, float]:
    """Mean change of a quantity between two checkpoints, within each seed, and the half-width of its band."""
    first, second = rows[rows["step"] == before], rows[rows["step"] == after]
    # The untouched model has no training seed: every training starts from it.
    keys = ["sample_seed"] if first["train_seed"].isna().all() else ["train_seed", "sample_seed"]
    return _band(_paired(first, second, keys), sigmas)


def _band(values: "pd.Series[float]", sigmas: float) -> tuple[float, float]:
    return float(values.mean()), sigmas * float(values.std() if len(values) > 1 else 0.0)


def _standard_error(first: float, second: float, n: int) -> float:
    """Of the difference of two shares of n examples each; too large where they are the same examples, as here."""
    return math.sqrt((first * (1 - first) + second * (1 - second)) / n)


def _sign(change: float, half_width: float) -> int:
    return 0 if abs(change) <= half_width else int(math.copysign(1, change))


def _of(*holds: bool) -> Agreement:
    return "yes" if all(holds) else "partly" if any(holds) else "no"


def _overall(found: Mapping[str, int]) -> Agreement:
    if not found:
        return NOT_MEASURED
    return next(iter(found)) if len(found) == 1 else "partly"


def _coloured(agrees: str) -> str:
    # Black, because the dark theme's text is white.
    return f"background-color: {_COLOURS[agrees]}; color: black"


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.1f} %"


def _with_band(mean: float, half_width: float, digits: int = 3, sign: bool = False) -> str:
    # + 0.0, or a rounded -0.0001 would read -0.000.
    return f"{round(mean, digits) + 0.0:{'+' if sign else ''}.{digits}f} ± {half_width:.{digits}f}"
