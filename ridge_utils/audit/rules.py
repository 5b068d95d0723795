"""How each of the nine claims is judged: the rules of the book's protocol, as code.

A rule gathers :class:`Evidence` from the tables of one model on one task, a piece for each checkpoint (or text), and
gives a verdict on each piece once all p-values of the claim are corrected. Every effect is turned so that the paper's
side is positive.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd

from ridge_utils import inference
from ridge_utils.formatting import listed, sentence
from ridge_utils.inference import Effect
from ridge_utils.statistics import THIRDS, third_of

Verdict = Literal["reproduced", "partly", "not reproduced", "artefact of the estimator", "not judged"]
#: Tables of one model on one task, by the notebook that measured them; empty where a notebook was not run.
Tables = Mapping[str, pd.DataFrame]

NOT_JUDGED: Verdict = "not judged"

#: The controls of C1, by the variant that the table of the audit names.
CONTROLS = ("centred", "whitened", "median_bandwidth")
#: For C2, the widest interval, in shares of the depth, that pins a layer down.
WIDEST = 0.2
#: For C3, the share of random targets from which on something was memorised at all.
RECALLED = 0.1
#: For C6, the rank correlation from which on two profiles have the same shape.
SAME_SHAPE = 0.5


@dataclass(frozen=True)
class Evidence:
    """What a claim's tests found for one model on one task at one checkpoint."""

    #: checkpoint, and whatever else tells it from the others
    when: str
    #: the effects by name, the claim's side positive; those that were not measured are absent
    effects: dict[str, Effect]
    #: other numbers that the rule reads
    facts: dict[str, float] = field(default_factory=dict)
    #: unit of the first effect
    unit: str = "nats"


@dataclass(frozen=True)
class Rule:
    """How a claim is judged."""

    #: the notebooks whose tables it reads; the first one holds the figure
    pages: tuple[str, ...]
    #: evidence from one model's tables on one task
    gather: Callable[[Tables], list[Evidence]]
    #: verdict and reason, from the evidence, the names of the effects that are beyond their error on the claim's side,
    #: and of those that are on the other side
    decide: Callable[[Evidence, set[str], set[str]], tuple[Verdict, str]]


def _gather_peak(tables: Tables) -> list[Evidence]:
    falls = _effects(tables["estimator_audit"], "ridge_fall", "all")
    # A task with an open vocabulary has no classes; there the probe predicts the target's embedding.
    probes = _effects(tables["decodability"], "v_information_fall", "all")
    linear = {step: effect for (step, family), effect in probes.items() if family in ("", "embedding")}
    names = {"fall of I": "", "excess": "excess"} | {control: control for control in CONTROLS}
    steps = sorted({step for step, _ in falls})
    evidence = []
    for step in steps:
        effects = {name: falls[step, variant] for name, variant in names.items() if (step, variant) in falls}
        if step in linear:
            effects["probe"] = linear[step]
        evidence.append(Evidence(_checkpoint(step, steps), effects))
    return evidence


def _decide_peak(evidence: Evidence, holds: set[str], _against: set[str]) -> tuple[Verdict, str]:
    needed = ("excess", *CONTROLS, "probe")
    measured = [name for name in needed if name in evidence.effects]
    if "fall of I" not in holds:
        return "not reproduced", "I does not fall from its largest layer to the last block beyond its error."
    if "excess" in measured and "excess" not in holds:
        return "artefact of the estimator", "I falls, but its excess over the null does not fall beyond its error here."
    others = [name for name in measured if name != "excess"]
    if others and not holds & set(others):
        return "artefact of the estimator", f"None of {listed(others)} falls beyond its error here."
    if set(needed) <= holds:
        return "reproduced", "Every control and the probe show the fall."
    unsure = [name for name in measured if name not in holds]
    absent = [name for name in needed if name not in measured]
    reasons = [f"no fall beyond its error: {listed(unsure)}"] if unsure else []
    reasons += [f"not measured: {listed(absent)}"] if absent else []
    return "partly", sentence("; ".join(reasons))


def _gather_generalisation(tables: Tables) -> list[Evidence]:
    exits = tables["early_exit"]
    apart, gains = (_effects(exits, name, "ood", "") for name in ("exit_layer_difference", "exit_accuracy_gain"))
    falls = _effects(tables["estimator_audit"], "ridge_fall", "ood", "")
    accuracy = exits[_rows(exits, "early_exit_accuracy", "ood") & (exits["variant"] == "")]
    steps = sorted({step for step, _ in apart})
    evidence = []
    for step in steps:
        # No test: the interval decides, so it has no place in Holm's family.
        effects = {"best layer less ridge layer": replace(apart[step, ""], p=math.nan)}
        for name, measured in (("accuracy at the end", gains), ("fall of I", falls)):
            if (step, "") in measured:
                effects[name] = measured[step, ""]
        best = accuracy.loc[accuracy["step"] == step, "value"].max()
        facts = {"best": float(best), "blocks": float(exits["layer"].max())}
        evidence.append(Evidence(_checkpoint(step, steps), effects, facts, "layers"))
    return evidence


def _decide_generalisation(evidence: Evidence, holds: set[str], _against: set[str]) -> tuple[Verdict, str]:
    apart = evidence.effects["best layer less ridge layer"]
    if not evidence.facts["best"] > 0:
        return NOT_JUDGED, "The early exit of no layer is ever right."
    if "fall of I" in evidence.effects and "fall of I" not in holds:
        return NOT_JUDGED, "I does not fall after its largest layer beyond its error: no ridge to compare with."
    if apart.low > 0 or apart.high < 0:
        return "not reproduced", "The interval of the difference of the two layers leaves out 0."
    if "accuracy at the end" in holds:
        return "not reproduced", "Accuracy is higher at the last block than at the ridge layer."
    narrow = apart.high - apart.low <= WIDEST * evidence.facts["blocks"]
    if narrow and "fall of I" in holds:
        return "reproduced", "The interval of the difference of the two layers is narrow and holds 0, and I falls."
    reasons = [] if narrow else ["the interval is too wide to say that the layers coincide"]
    reasons += [] if "fall of I" in holds else ["whether I falls after the ridge layer was not measured"]
    return "partly", sentence("; ".join(reasons))


def _gather_memorisation(tables: Tables) -> list[Evidence]:
    table = tables["interventions"]
    name = "recall of random targets, later by"
    evidence = []
    for (step, _), effect in _effects(table, "recall_depth_difference", "train", "").items():
        rows = table[table["step"] == step]
        random = rows[rows["variant"] == "random"]
        recall = random[random["quantity"] == "recall_accuracy"]
        facts = {
            "recalled": recall.loc[recall["layer"] == recall["layer"].max(), "value"].mean(),
            "depth": random.loc[random["quantity"] == "recall_depth", "value"].mean(),
            "ridge": rows.loc[rows["quantity"] == "memorisation_ridge_layer", "value"].mean(),
        }
        evidence.append(Evidence(f"trained with random targets, step {step}", {name: effect}, facts, "layers"))
    return evidence


def _decide_memorisation(evidence: Evidence, holds: set[str], _against: set[str]) -> tuple[Verdict, str]:
    facts = evidence.facts
    if not facts["recalled"] > RECALLED:
        return NOT_JUDGED, f"Only {100 * facts['recalled']:.0f} % of the random targets are recalled at the end."
    where = f"Half of the recall is there at layer {facts['depth']:.0f}, the ridge is layer {facts['ridge']:.0f}."
    return _share(bool(holds), facts["depth"] > facts["ridge"]), where


def _gather_gain(tables: Tables) -> list[Evidence]:
    table = tables["incremental_information"]
    rows = table[_rows(table, "incremental_information", "all")]
    steps = sorted(rows["step"].unique())
    evidence = []
    for step in steps:
        profiles = rows[rows["step"] == step]
        if profiles["layer"].max() < len(THIRDS):
            evidence.append(Evidence(_checkpoint(step, steps), {}))
            continue
        effects = {f"middle less {third} third": _subsampled(profiles, _lead(third)) for third in ("last", "first")}
        evidence.append(Evidence(_checkpoint(step, steps), effects))
    return evidence


def _decide_gain(evidence: Evidence, holds: set[str], against: set[str]) -> tuple[Verdict, str]:
    if not evidence.effects:
        return NOT_JUDGED, "The model has too few blocks for three thirds."
    if against:
        more = " and ".join(f"the {name.split()[-2]} third" for name in evidence.effects if name in against)
        return "not reproduced", sentence(f"{more} gains more than the middle one")
    return _decide_share(evidence, holds, against)


def _gather_scaling(tables: Tables) -> list[Evidence]:
    measured = (
        ("fall of the last scale under OOD", "residual_scaling", "scale_shift", ""),
        ("gain of OOD accuracy", "residual_scaling", "scaled_accuracy_gain", ""),
        ("ridge blocks over final blocks", "interventions", "ablation_contrast", "skip"),
    )
    by_step: dict[int, dict[str, Effect]] = {}
    for name, page, quantity, variant in measured:
        for (step, _), effect in _effects(tables[page], quantity, "ood", variant).items():
            by_step.setdefault(step, {})[name] = _turned(effect) if quantity == "scale_shift" else effect
    steps = sorted(by_step)
    return [Evidence(_checkpoint(step, steps), by_step[step], unit="as named") for step in steps]


def _decide_scaling(evidence: Evidence, holds: set[str], against: set[str]) -> tuple[Verdict, str]:
    if set(evidence.effects) <= {"fall of the last scale under OOD"}:
        return NOT_JUDGED, "Only the scales themselves were measured."
    return _decide_share(evidence, holds, against)


def _gather_decoding(tables: Tables) -> list[Evidence]:
    table = tables["multi_token"]
    labels = {"all": "all pairs of steps", "aligned": "the same steps only"}
    evidence = []
    for text in ("generated", "reference"):
        for pairs, label in labels.items():
            rows = table[(table["quantity"] == f"sequence_information_{pairs}_{text}") & (table["site"] == "block")]
            if rows["decoding_step"].nunique() < 2:
                continue
            profiles = _by_seed(rows, ["decoding_step", "layer"])
            fraction = float(rows["fraction"].iloc[0])
            first, *between, last = sorted(rows["decoding_step"].unique())
            growth = profiles[last].mean(axis=1) - profiles[first].mean(axis=1)
            effects = {"growth of the level": inference.subsample_effect(growth, fraction)}
            lowest = 1.0
            for step in (first, *between):
                alike = profiles[step].corrwith(profiles[last], axis=1, method="spearman")
                # A flat profile has no rank correlation, and so not the last one's shape.
                low = inference.subsample_effect(alike, fraction).low if alike.notna().all() else -1.0
                lowest = min(lowest, low)
            evidence.append(Evidence(f"untouched, {text} text, {label}", effects, {"lowest": lowest}))
    return evidence


def _decide_decoding(evidence: Evidence, holds: set[str], _against: set[str]) -> tuple[Verdict, str]:
    stays = evidence.facts["lowest"] >= SAME_SHAPE
    reasons = [] if holds else ["the level does not grow beyond its error"]
    reasons += [] if stays else [f"the order of the layers may change (lowest end {evidence.facts['lowest']:.2f})"]
    return _share(bool(holds), stays), sentence("; ".join(reasons))


def _gather_depth(tables: Tables) -> list[Evidence]:
    cut = _trained_profiles(tables["truncation"])
    if cut.empty:
        return []
    depths = cut["model"].map(cut.groupby("model")["layer"].max().astype(int))
    effects = {}
    for blocks, profiles in cut.groupby(depths):
        effects[f"{blocks} blocks"] = _subsampled(profiles[profiles["step"] == profiles["step"].max()], _fall)
    whole = _trained_profiles(tables["predictive_information"])
    if len(whole):
        # The model that was not cut is the deepest of all, at the checkpoint that was trained for about as long.
        step = min(whole["step"].unique(), key=lambda step: abs(step - cut["step"].max()))
        name = f"{int(whole['layer'].max())} blocks, uncut (step {step})"
        effects[name] = _subsampled(whole[whole["step"] == step], _fall)
    return [Evidence("fine-tuned", effects)] if len(effects) > 1 else []


def _trained_profiles(table: pd.DataFrame) -> pd.DataFrame:
    """Profiles of fine-tuned models on ID and OOD examples together, one for each sampling seed."""
    rows = table[_rows(table, "predictive_information", "all") & (table["step"] > 0)]
    return rows[rows["sample_seed"].notna()]


def _decide_depth(evidence: Evidence, holds: set[str], _against: set[str]) -> tuple[Verdict, str]:
    falls = [name in holds for name in evidence.effects]
    where = listed(name for name in evidence.effects if name in holds)
    why = f"A fall beyond its error at {where}." if where else "No number of blocks has a fall beyond its error."
    if not falls[0] and falls[-1]:
        return ("reproduced" if falls == sorted(falls) else "partly"), why
    return "not reproduced", why


def _gather_overfitting(tables: Tables) -> list[Evidence]:
    table = tables["overfitting"]
    losses = table[_rows(table, "loss", "id")].groupby("step")["value"].mean()
    if losses.empty:
        return []
    best, end = int(losses.idxmin()), int(losses.index.max())
    rows = table[_rows(table, "predictive_information", "all") & (table["site"] == "block")]
    last = rows[rows["layer"] == rows["layer"].max()]
    effects = {}
    if 0 < best < end:
        before, after = (last[last["step"] == step].groupby("sample_seed")["value"].mean() for step in (best, end))
        rise = inference.subsample_effect(after - before, float(last["fraction"].iloc[0]))
        effects["rise at the last block"] = rise
    return [Evidence(f"from step {best} to {end}", effects)]


def _decide_overfitting(evidence: Evidence, holds: set[str], _against: set[str]) -> tuple[Verdict, str]:
    if not evidence.effects:
        return NOT_JUDGED, "The run has no optimum that it passes."
    return ("reproduced", "") if holds else ("not reproduced", "I at the last block does not rise beyond its error.")


def _gather_attention(tables: Tables) -> list[Evidence]:
    names = {
        "signal_attention_fall": "fall of attention to the signal",
        "signal_attention_excess": "signal over chance",
        "last_token_attention_excess": "last token over signal, at the end",
    }
    evidence = []
    for split in ("id", "ood"):
        measured = {name: _effects(tables["attention"], quantity, split, "") for quantity, name in names.items()}
        steps = sorted({step for effects in measured.values() for step, _ in effects})
        for step in steps:
            effects = {name: effects[step, ""] for name, effects in measured.items() if (step, "") in effects}
            when = f"{_checkpoint(step, steps)}, {split.upper()}"
            evidence.append(Evidence(when, effects, unit="share of attention"))
    return evidence


def _decide_share(evidence: Evidence, holds: set[str], against: set[str]) -> tuple[Verdict, str]:
    """Reproduced where all effects hold, partly where some do."""
    unsure = set(evidence.effects) - holds - against
    reasons = [
        f"{what}: {listed(name for name in evidence.effects if name in names)}."
        for what, names in (("Beyond its error on the other side", against), ("Not beyond its error", unsure))
        if names
    ]
    return _share(*(name in holds for name in evidence.effects)), " ".join(reasons)


#: How each claim is judged.
RULES: dict[str, Rule] = {
    "C1": Rule(("estimator_audit", "decodability"), _gather_peak, _decide_peak),
    "C2": Rule(("early_exit", "estimator_audit"), _gather_generalisation, _decide_generalisation),
    "C3": Rule(("interventions",), _gather_memorisation, _decide_memorisation),
    "C4": Rule(("incremental_information",), _gather_gain, _decide_gain),
    "C5": Rule(("residual_scaling", "interventions"), _gather_scaling, _decide_scaling),
    "C6": Rule(("multi_token",), _gather_decoding, _decide_decoding),
    "C7": Rule(("truncation", "predictive_information"), _gather_depth, _decide_depth),
    "C8": Rule(("overfitting",), _gather_overfitting, _decide_overfitting),
    "C9": Rule(("attention",), _gather_attention, _decide_share),
}


def _rows(table: pd.DataFrame, quantity: str, split: str) -> "pd.Series[bool]":
    return (table["quantity"] == quantity) & (table["split"] == split)


def _effects(table: pd.DataFrame, quantity: str, split: str, variant: str | None = None) -> dict[Any, Effect]:
    """The effects of one name by step and variant, the training seeds together."""
    rows = inference.effects(table[table["split"] == split], quantity)
    if variant is not None:
        rows = rows[rows["variant"] == variant]
    numbers = ["estimate", "low", "high", "p", "effect_size"]
    return {
        (int(step), name): inference.together([Effect(*row) for row in seeds[numbers].itertuples(index=False)])
        for (step, name), seeds in rows.groupby(["step", "variant"], sort=False)
    }


def _by_seed(rows: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Values by seeds in rows; an untouched model has no training seed, and pivoting would drop its rows."""
    rows = rows.assign(train_seed=rows["train_seed"].fillna(-1))
    return rows.pivot_table(index=["train_seed", "sample_seed"], columns=columns, values="value")


def _subsampled(rows: pd.DataFrame, statistic: Callable[[pd.DataFrame], "pd.Series[float]"]) -> Effect:
    """A statistic of profiles (a row per seed, a column per layer) over the sampling seeds, training seeds together."""
    body = rows[rows["site"] != "final_norm"]
    fraction = float(body["fraction"].iloc[0])
    by_training = _by_seed(body, ["layer"]).groupby(level="train_seed", sort=False)
    return inference.together([inference.subsample_effect(statistic(part), fraction) for _, part in by_training])


def _lead(third: str) -> Callable[[pd.DataFrame], "pd.Series[float]"]:
    """By how much the mean over the middle third of the blocks exceeds that over another third."""

    def difference(profiles: pd.DataFrame) -> "pd.Series[float]":
        places = pd.Series([third_of(layer, profiles.columns.max()) for layer in profiles], index=profiles.columns)
        middle, other = (profiles.loc[:, places == name].mean(axis=1) for name in ("middle", third))
        return middle - other

    return difference


def _fall(profiles: pd.DataFrame) -> "pd.Series[float]":
    """Fall to the last block from the layer that is largest over the other subsamples."""
    chosen = [profiles.drop(index=[seed]).mean().idxmax() for seed in profiles.index]
    heights = [profiles.loc[pair] for pair in zip(profiles.index, chosen, strict=True)]
    return pd.Series(heights, profiles.index) - profiles[profiles.columns.max()]


def _turned(effect: Effect) -> Effect:
    return Effect(-effect.estimate, -effect.high, -effect.low, effect.p, -effect.size)


def _share(*parts: bool) -> Verdict:
    return "reproduced" if all(parts) else "partly" if any(parts) else "not reproduced"


def _checkpoint(step: int, steps: Sequence[int]) -> str:
    if not step:
        return "untouched"
    return f"step {step}, the last" if step == max(steps) else f"step {step}"
