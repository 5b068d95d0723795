"""The verdicts of the audit: what the tables say of each claim, by the rules of the protocol.

A claim's rule first gathers evidence, one :class:`Evidence` for every model, task and checkpoint that the tables hold:
the effects that it tests, each turned so that the claim's side is positive. Holm's correction then runs over all of a
claim's tests together, and only then the rule decides. The rules are stated in the book's protocol, which was committed
before the measurements.
"""

import itertools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from ridge_utils import formatting, inference, results
from ridge_utils.inference import Effect
from ridge_utils.statistics import third_of

Verdict = Literal["reproduced", "partly", "not reproduced", "artefact of the estimator", "not judged"]

#: The verdicts on what was measured, the best for the paper first.
VERDICTS: tuple[Verdict, ...] = ("reproduced", "partly", "not reproduced", "artefact of the estimator")
NOT_JUDGED: Verdict = "not judged"
#: Why a claim is not judged on a model and task that has no table for it; any other reason is one of its rule.
NOT_MEASURED = "Not measured."
#: Of several states that have different verdicts.
MIXED = "mixed"

#: Family-wise error rate of a claim's tests.
LEVEL = inference.LEVEL
#: The controls of C1, what each of them asks of the fall, by the variant that the table of the audit names.
CONTROLS = ("centred", "whitened", "median_bandwidth")
#: For C2, the widest interval, in shares of the depth, that pins a layer down.
WIDEST = 0.2
#: For C3, the share of random targets from which on something was memorised at all.
RECALLED = 0.1
#: For C6, the rank correlation from which on two profiles have the same shape.
SAME_SHAPE = 0.5

#: Columns of the frame that :func:`judge` gives.
COLUMNS = (
    "claim",
    "model",
    "task",
    "source",
    "when",
    "verdict",
    "effect",
    "estimate",
    "low",
    "high",
    "p",
    "unit",
    "why",
    "page",
    "files",
)

#: A table of measurements and its provenance.
Stored = tuple[pd.DataFrame, Mapping[str, Any]]

_CASE = ("model", "task", "source")
_CUT = r"\[:\d+\]$"


@dataclass(frozen=True)
class Evidence:
    """What a claim's tests found for one model on one task in one state."""

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
    #: evidence from one model's tables on one task, by notebook
    gather: Callable[[Mapping[str, pd.DataFrame]], list[Evidence]]
    #: verdict and reason, from the evidence and the names of the effects that hold after correction, and of those that
    #: hold on the other side
    decide: Callable[[Evidence, set[str], set[str]], tuple[Verdict, str]]


def stored() -> dict[str, dict[str, Stored]]:
    """The tables that the verdicts are judged by: those of the reference runs, then of audits, then of default runs.

    Returns:
        For each notebook its tables with their provenance, by the name of their file under ``results/``. Where several
        speak of one model and task, the first counts.

    Raises:
        StorageError: one of them does not match its provenance.
    """
    tables: dict[str, dict[str, Stored]] = {}
    for page in pages():
        kinds = [sorted((results.FOLDER / kind).glob(f"*/{page}.csv")) for kind in ("reference", "audit")]
        # Of two tables on one model and task the first counts.
        paths = [*itertools.chain(*kinds), results.FOLDER / f"{page}.csv"]
        tables[page] = {p.relative_to(results.FOLDER).as_posix(): results.read(p) for p in paths if p.exists()}
    return tables


def audit_file(table: pd.DataFrame) -> Path:
    """Where a user's audit goes, so that :func:`stored` finds it: one folder per model and task.

    Args:
        table: table of measurements of one model on one task.
    """
    name = "-".join(str(table[column].iloc[0]) for column in ("model", "task"))
    return results.FOLDER / "audit" / re.sub(r"[^A-Za-z0-9._-]+", "-", name) / "audit.csv"


def judge(tables: Mapping[str, Mapping[str, Stored]]) -> pd.DataFrame:
    """Judge every claim on every model and task that the tables speak of.

    Args:
        tables: tables of measurements with their provenance, by notebook and file, as :func:`stored` gives them; those
            under ``audit`` hold the quantities of several notebooks and stand in where a notebook has no table for a
            model and task.

    Returns:
        Rows with the columns :data:`COLUMNS`: one per claim, model, task and state; ``estimate``, ``low`` and ``high``
        belong to the rule's first effect, ``p`` is its p-value after Holm's correction over the claim's tests, and
        ``files`` are those that the evidence comes from. A model and task that a claim has no evidence for has one row
        ``not judged``.
    """
    cases = _cases(tables)
    rows: list[tuple[Any, ...]] = []
    for claim, rule in RULES.items():
        found = {case: rule.gather(own) for case, own in cases.items()}
        files = {
            case: ", ".join(dict.fromkeys(own[page]["file"].iloc[0] for page in rule.pages if page in own))
            for case, own in cases.items()
        }
        tests = [
            (case, place, name, effect)
            for case, every in found.items()
            for place, evidence in enumerate(every)
            for name, effect in evidence.effects.items()
        ]
        corrected = inference.holm([effect.p for *_, effect in tests])
        p_values = {key[:3]: p for key, p in zip(tests, corrected, strict=True)}
        for case, every in found.items():
            for place, evidence in enumerate(every):
                beyond = {
                    name: math.copysign(1, effect.estimate)
                    for name, effect in evidence.effects.items()
                    if p_values[case, place, name] <= LEVEL
                }
                holds, against = ({name for name in beyond if beyond[name] == side} for side in (1, -1))
                verdict, why = rule.decide(evidence, holds, against)
                name, effect = next(iter(evidence.effects.items()), ("", _NOTHING))
                p = p_values.get((case, place, name), math.nan)
                numbers = (name, effect.estimate, effect.low, effect.high, p, evidence.unit)
                rows.append((claim, *case, evidence.when, verdict, *numbers, why, rule.pages[0], files[case]))
            if not every:
                numbers = ("", math.nan, math.nan, math.nan, math.nan, "")
                rows.append((claim, *case, "", NOT_JUDGED, *numbers, NOT_MEASURED, rule.pages[0], ""))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def overall(verdicts: pd.DataFrame) -> pd.DataFrame:
    """The states of each claim, model and task together.

    Args:
        verdicts: what :func:`judge` gave.

    Returns:
        A row per claim, model and task with the number of states of each of :data:`VERDICTS`, and ``verdict``: the one
        that all judged states share, ``partly`` where they differ, ``not judged`` where there are none.
    """
    rows = []
    for case, own in verdicts.groupby(["claim", *_CASE], sort=False):
        counts = {verdict: int((own["verdict"] == verdict).sum()) for verdict in VERDICTS}
        found = [verdict for verdict, count in counts.items() if count]
        rows.append((*case, *counts.values(), found[0] if len(found) == 1 else MIXED if found else NOT_JUDGED))
    return pd.DataFrame(rows, columns=["claim", *_CASE, *VERDICTS, "verdict"])


def _gather_peak(tables: Mapping[str, pd.DataFrame]) -> list[Evidence]:
    audit, probes = tables.get("estimator_audit"), tables.get("decodability")
    if audit is None:
        return []
    falls = _effects(audit, "ridge_fall", split="all")
    # A task with an open vocabulary has no classes; there the probe predicts the target's embedding.
    probed = {} if probes is None else _effects(probes, "v_information_fall", split="all")
    read = {step: effect for (step, family), effect in probed.items() if family in ("", "embedding")}
    steps = sorted({step for step, _ in falls})
    out = []
    for step in steps:
        effects = {
            name: falls[step, variant]
            for name, variant in (("fall of I", ""), ("excess", "excess"), *((c, c) for c in CONTROLS))
            if (step, variant) in falls
        }
        if step in read:
            effects["probe"] = read[step]
        out.append(Evidence(_state(step, steps), effects))
    return out


def _decide_peak(evidence: Evidence, holds: set[str], _against: set[str]) -> tuple[Verdict, str]:
    if "fall of I" not in holds:
        return "not reproduced", "I does not fall from its largest layer to the last block beyond its error."
    others = [name for name in (*CONTROLS, "probe") if name in evidence.effects]
    kept = [name for name in others if name in holds]
    if "excess" in evidence.effects and "excess" not in holds:
        return (
            "artefact of the estimator",
            "The fall is that of the permutation null: the excess over it does not fall.",
        )
    if others and not kept:
        return "artefact of the estimator", f"None of {formatting.listed(others)} shows the fall."
    needed = {"excess", *CONTROLS, "probe"}
    if needed <= holds:
        return "reproduced", "Every control and the probe show the fall."
    missing = [name for name in ("excess", *CONTROLS, "probe") if name not in holds]
    measured = [name for name in missing if name in evidence.effects]
    said = (
        [f"{formatting.listed(measured)} {'does' if len(measured) == 1 else 'do'} not show the fall"]
        if measured
        else []
    )
    absent = [name for name in missing if name not in evidence.effects]
    said += [f"{formatting.listed(absent)} not measured"] if absent else []
    return "partly", formatting.sentence("; ".join(said))


def _gather_generalisation(tables: Mapping[str, pd.DataFrame]) -> list[Evidence]:
    exits, audit = tables.get("early_exit"), tables.get("estimator_audit")
    if exits is None:
        return []
    apart = _effects(exits, "exit_layer_difference", split="ood", variant="")
    gains = _effects(exits, "exit_accuracy_gain", split="ood", variant="")
    falls = _effects(audit, "ridge_fall", split="ood", variant="") if audit is not None else {}
    accuracy = exits[(exits["quantity"] == "early_exit_accuracy") & (exits["split"] == "ood")]
    steps = sorted({step for step, _ in apart})
    out = []
    for step in steps:
        key = (step, "")
        # No test: the interval decides, so it has no place in Holm's family.
        effects = {"best layer less ridge layer": replace(apart[key], p=math.nan)}
        if key in gains:
            effects["accuracy at the end"] = gains[key]
        if key in falls:
            effects["fall of I"] = falls[key]
        rows = accuracy[(accuracy["step"] == step) & (accuracy["variant"] == "")]
        facts = {"best": float(rows["value"].max()), "blocks": float(exits["layer"].max())}
        out.append(Evidence(_state(step, steps), effects, facts, "layers"))
    return out


def _decide_generalisation(evidence: Evidence, holds: set[str], _against: set[str]) -> tuple[Verdict, str]:
    apart = evidence.effects["best layer less ridge layer"]
    if not evidence.facts["best"] > 0:
        return NOT_JUDGED, "The early exit of no layer is ever right."
    if "fall of I" in evidence.effects and "fall of I" not in holds:
        return NOT_JUDGED, "I does not fall after its largest layer beyond its error, so there is no ridge."
    if apart.low > 0 or apart.high < 0:
        return "not reproduced", "The interval of the difference of the two layers leaves out 0."
    if "accuracy at the end" in holds:
        return "not reproduced", "Accuracy is higher at the last block than at the ridge layer."
    narrow = apart.high - apart.low <= WIDEST * evidence.facts["blocks"]
    if narrow and "fall of I" in holds:
        return "reproduced", "The two layers coincide, and I falls after them."
    missing = ([] if narrow else ["the interval is too wide to say that the layers coincide"]) + (
        [] if "fall of I" in holds else ["whether I falls after the ridge layer was not measured"]
    )
    return "partly", formatting.sentence("; ".join(missing))


def _gather_memorisation(tables: Mapping[str, pd.DataFrame]) -> list[Evidence]:
    table = tables.get("interventions")
    if table is None:
        return []
    apart = _effects(table, "recall_depth_difference", split="train", variant="")
    recall = table[(table["quantity"] == "recall_accuracy") & (table["variant"] == "random")]
    out = []
    for (step, _), effect in apart.items():
        rows = recall[recall["step"] == step]
        depth = table[(table["quantity"] == "recall_depth") & (table["variant"] == "random") & (table["step"] == step)]
        ridge = table[(table["quantity"] == "memorisation_ridge_layer") & (table["step"] == step)]
        facts = {
            "recalled": float(rows.loc[rows["layer"] == rows["layer"].max(), "value"].mean()),
            "depth": float(depth["value"].mean()),
            "ridge": float(ridge["value"].mean()),
        }
        effects = {"recall of random targets, later by": effect}
        out.append(Evidence(f"trained with random targets, step {step}", effects, facts, "layers"))
    return out


def _decide_memorisation(evidence: Evidence, holds: set[str], _against: set[str]) -> tuple[Verdict, str]:
    facts = evidence.facts
    if not facts["recalled"] > RECALLED:
        return NOT_JUDGED, f"Only {100 * facts['recalled']:.0f} % of the random targets are recalled at the end."
    later, after = bool(holds), facts["depth"] > facts["ridge"]
    where = f"Half of the recall is there at layer {facts['depth']:g}, the ridge is layer {facts['ridge']:g}."
    return _of(later, after), where


def _gather_gain(tables: Mapping[str, pd.DataFrame]) -> list[Evidence]:
    table = tables.get("incremental_information")
    if table is None:
        return []
    rows = table[(table["quantity"] == "incremental_information") & (table["split"] == "all")]
    steps = sorted(rows["step"].unique())
    out = []
    for step in steps:
        effects = {}
        for name, other in (("middle less last third", "last"), ("middle less first third", "first")):
            effects[name] = _over_seeds(rows[rows["step"] == step], lambda wide, other=other: _third_gain(wide, other))
        out.append(Evidence(_state(step, steps), effects))
    return out


def _decide_gain(evidence: Evidence, holds: set[str], against: set[str]) -> tuple[Verdict, str]:
    if against:
        more = " and ".join(f"the {name.split()[-2]} third" for name in evidence.effects if name in against)
        return "not reproduced", formatting.sentence(f"{more} gains more than the middle one")
    return _of(*(name in holds for name in evidence.effects)), _missed(evidence, holds, against)


def _gather_scaling(tables: Mapping[str, pd.DataFrame]) -> list[Evidence]:
    scales, cuts = tables.get("residual_scaling"), tables.get("interventions")
    found: dict[int, dict[str, Effect]] = {}
    if scales is not None:
        for (step, _), effect in _effects(scales, "scale_shift", split="ood", variant="").items():
            found.setdefault(step, {})["fall of the last scale under OOD"] = _turned(effect)
        for (step, _), effect in _effects(scales, "scaled_accuracy_gain", split="ood", variant="").items():
            found.setdefault(step, {})["gain of OOD accuracy"] = effect
    if cuts is not None:
        for (step, _), effect in _effects(cuts, "ablation_contrast", split="ood", variant="skip").items():
            found.setdefault(step, {})["ridge blocks over final blocks"] = effect
    steps = sorted(found)
    return [Evidence(_state(step, steps), found[step], unit="as named") for step in steps]


def _decide_scaling(evidence: Evidence, holds: set[str], against: set[str]) -> tuple[Verdict, str]:
    if set(evidence.effects) <= {"fall of the last scale under OOD"}:
        return NOT_JUDGED, "Only the scales themselves were measured."
    return _of(*(name in holds for name in evidence.effects)), _missed(evidence, holds, against)


def _gather_decoding(tables: Mapping[str, pd.DataFrame]) -> list[Evidence]:
    table = tables.get("multi_token")
    if table is None:
        return []
    labels = {"all": "all pairs of steps", "aligned": "the same steps only"}
    out = []
    for text in ("generated", "reference"):
        for pairs in labels:
            rows = table[table["quantity"] == f"sequence_information_{pairs}_{text}"]
            rows = rows[rows["site"] == "block"]
            if rows["decoding_step"].nunique() < 2:
                continue
            wide = _by_seed(rows, ["decoding_step", "layer"])
            times = sorted(rows["decoding_step"].unique())
            level = pd.DataFrame({time: wide[time].mean(axis=1) for time in times})
            shares = rows["fraction"].iloc[0]
            effects = {"growth of the level": _subsampled(level[times[-1]] - level[times[0]], shares)}
            lowest = 1.0
            for time in times[:-1]:
                alike = wide[time].corrwith(wide[times[-1]], axis=1, method="spearman")
                lowest = min(lowest, _subsampled(alike, shares).low if alike.notna().all() else -1.0)
            out.append(Evidence(f"untouched, {text} text, {labels[pairs]}", effects, {"lowest": lowest}))
    return out


def _decide_decoding(evidence: Evidence, holds: set[str], _against: set[str]) -> tuple[Verdict, str]:
    stays = evidence.facts["lowest"] >= SAME_SHAPE
    missing = ([] if holds else ["the level does not grow beyond its error"]) + (
        [] if stays else [f"the order of the layers may change (lowest end {evidence.facts['lowest']:.2f})"]
    )
    return _of(bool(holds), stays), formatting.sentence("; ".join(missing))


def _gather_depth(tables: Mapping[str, pd.DataFrame]) -> list[Evidence]:
    table = tables.get("truncation")
    if table is None:
        return []
    rows = _trained_profiles(table)
    effects = {}
    for blocks, own in sorted(rows.groupby(rows["model"].map(_depths(rows))), key=lambda pair: pair[0]):
        effects[f"{blocks} blocks"] = _over_seeds(own[own["step"] == own["step"].max()], _fall)
    whole = _trained_profiles(tables["predictive_information"]) if "predictive_information" in tables else None
    if whole is not None and len(whole):
        # The model that was not cut is the deepest of all, at the checkpoint that was trained for about as long.
        step = min(whole["step"].unique(), key=lambda step: abs(step - rows["step"].max()))
        name = f"{int(whole['layer'].max())} blocks, uncut (step {step})"
        effects[name] = _over_seeds(whole[whole["step"] == step], _fall)
    return [Evidence("fine-tuned", effects)] if len(effects) > 1 else []


def _trained_profiles(table: pd.DataFrame) -> pd.DataFrame:
    """Profiles of fine-tuned models on ID and OOD examples together, one for each sampling seed."""
    rows = table[(table["quantity"] == "predictive_information") & (table["split"] == "all") & (table["step"] > 0)]
    return rows[rows["sample_seed"].notna()]


def _decide_depth(evidence: Evidence, holds: set[str], _against: set[str]) -> tuple[Verdict, str]:
    found = [name in holds for name in evidence.effects]
    names = [name for name, fall in zip(evidence.effects, found, strict=True) if fall]
    said = (
        f"A fall beyond its error at {formatting.listed(names)}."
        if names
        else "No number of blocks has a fall beyond its error."
    )
    if not found[0] and found[-1]:
        return ("reproduced" if found == sorted(found) else "partly"), said
    return "not reproduced", said


def _gather_overfitting(tables: Mapping[str, pd.DataFrame]) -> list[Evidence]:
    table = tables.get("overfitting")
    if table is None:
        return []
    losses = table[(table["quantity"] == "loss") & (table["split"] == "id")].groupby("step")["value"].mean()
    if losses.empty:
        return []
    best, end = int(losses.idxmin()), int(losses.index.max())
    rows = table[(table["quantity"] == "predictive_information") & (table["split"] == "all")]
    last = rows[(rows["site"] == "block") & (rows["layer"] == rows["layer"].max())]
    effects = {}
    if 0 < best < end:
        # The untouched model has no training seed, so the seeds that both have are those of the sampling.
        before, after = (last[last["step"] == step].groupby("sample_seed")["value"].mean() for step in (best, end))
        effects["rise at the last block"] = _subsampled(after - before, last["fraction"].iloc[0])
    return [Evidence(f"from step {best} to {end}", effects)]


def _decide_overfitting(evidence: Evidence, holds: set[str], _against: set[str]) -> tuple[Verdict, str]:
    if not evidence.effects:
        return NOT_JUDGED, "The run has no optimum that it passes."
    return ("reproduced", "") if holds else ("not reproduced", "I at the last block does not rise beyond its error.")


def _gather_attention(tables: Mapping[str, pd.DataFrame]) -> list[Evidence]:
    table = tables.get("attention")
    if table is None:
        return []
    names = {
        "signal_attention_fall": "fall of attention to the signal",
        "signal_attention_excess": "signal over chance",
        "last_token_attention_excess": "last token over signal, at the end",
    }
    out = []
    for split in ("id", "ood"):
        every = {name: _effects(table, quantity, split=split, variant="") for quantity, name in names.items()}
        steps = sorted({step for found in every.values() for step, _ in found})
        for step in steps:
            effects = {name: found[step, ""] for name, found in every.items() if (step, "") in found}
            out.append(Evidence(f"{_state(step, steps)}, {split.upper()}", effects, unit="share of attention"))
    return out


def _decide_attention(evidence: Evidence, holds: set[str], against: set[str]) -> tuple[Verdict, str]:
    return _of(*(name in holds for name in evidence.effects)), _missed(evidence, holds, against)


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
    "C9": Rule(("attention",), _gather_attention, _decide_attention),
}

_NOTHING = Effect(math.nan, math.nan, math.nan, math.nan, math.nan)


def pages() -> list[str]:
    """The notebooks whose tables the claims are judged by, and ``audit``."""
    return [*dict.fromkeys(page for rule in RULES.values() for page in rule.pages), "audit"]


def _cases(tables: Mapping[str, Mapping[str, Stored]]) -> dict[tuple[str, ...], dict[str, pd.DataFrame]]:
    """The tables of each model and task by notebook; cut models belong to the model that they were cut from."""
    cases: dict[tuple[str, ...], dict[str, pd.DataFrame]] = {}
    # Tables of one notebook come before the audit's, which stands in for those that are missing.
    for page in sorted(tables, key=lambda page: page == "audit"):
        for file, (table, origin) in tables[page].items():
            table = table.assign(fraction=table["n"] / _pool(table, origin), file=file)
            whole = table["model"].str.replace(_CUT, "", regex=True)
            for case, own in table.groupby([whole, *(table[column] for column in _CASE[1:])], sort=False):
                held = cases.setdefault(tuple(map(str, case)), {})
                for name in pages()[:-1] if page == "audit" else [page]:
                    held.setdefault(name, own)
    return cases


def _pool(table: pd.DataFrame, origin: Mapping[str, Any]) -> pd.Series:
    """How many examples there were to draw from, for each row."""
    if "texts" in origin:
        texts = origin["texts"]
        if isinstance(texts, Mapping):
            return table["quantity"].str.rpartition("_")[2].map(texts).astype(float)
        return pd.Series(float(texts), index=table.index)
    counts = {split: origin.get("data", {}).get(split, math.nan) for split in ("id", "ood")}
    return table["split"].map({**counts, "all": sum(counts.values())}).astype(float)


def _effects(table: pd.DataFrame, quantity: str, split: str, variant: str | None = None) -> dict[Any, Effect]:
    """The effects of one name by step and variant, those of the training seeds together."""
    rows = inference.effects(table[table["split"] == split], quantity)
    if variant is not None:
        rows = rows[rows["variant"] == variant]
    return {
        (int(step), name): inference.together(
            [Effect(row.estimate, row.low, row.high, row.p, row.effect_size) for row in own.itertuples()]
        )
        for (step, name), own in rows.groupby(["step", "variant"], sort=False)
    }


def _by_seed(rows: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    """Values by seeds in rows; an untouched model has no training seed, and pivoting would drop its rows."""
    rows = rows.assign(train_seed=rows["train_seed"].fillna(-1))
    return rows.pivot_table(index=["train_seed", "sample_seed"], columns=columns, values="value")


def _over_seeds(rows: pd.DataFrame, statistic: Callable[[pd.DataFrame], pd.Series]) -> Effect:
    """A statistic of profiles over the paper's sampling seeds, the training seeds together."""
    body = rows[rows["site"] != "final_norm"]
    wide = _by_seed(body, ["layer"])
    parts = [wide.loc[[seed]] for seed in wide.index.get_level_values("train_seed").unique()]
    return inference.together([_subsampled(statistic(part), body["fraction"].iloc[0]) for part in parts])


def _subsampled(values: "pd.Series[float]", fraction: float) -> Effect:
    return inference.subsample_effect(values.tolist(), float(fraction))


def _third_gain(wide: pd.DataFrame, other: str) -> "pd.Series[float]":
    means = wide.T.groupby([third_of(layer, wide.columns.max()) for layer in wide.columns]).mean().T
    return means["middle"] - means[other]


def _fall(wide: pd.DataFrame) -> "pd.Series[float]":
    """Fall to the last block from the layer that is largest over the other subsamples."""
    last = wide.columns.max()
    chosen = {seed: wide.drop(index=[seed]).mean().idxmax() for seed in wide.index}
    return pd.Series(
        {seed: wide.loc[[seed], layer].iloc[0] - wide.loc[[seed], last].iloc[0] for seed, layer in chosen.items()}
    )


def _depths(rows: pd.DataFrame) -> dict[str, int]:
    return {model: int(own["layer"].max()) for model, own in rows.groupby("model")}


def _turned(effect: Effect) -> Effect:
    return Effect(-effect.estimate, -effect.high, -effect.low, effect.p, -effect.size)


def _of(*parts: bool) -> Verdict:
    return "reproduced" if all(parts) else "partly" if any(parts) else "not reproduced"


def _missed(evidence: Evidence, holds: set[str], against: set[str]) -> str:
    """Which effects do not hold, those that are beyond their error on the other side by themselves."""
    others = [name for name in evidence.effects if name in against]
    unsure = [name for name in evidence.effects if name not in holds | against]
    said = {"Beyond its error on the other side": others, "Not beyond its error": unsure}
    return " ".join(f"{what}: {formatting.listed(names)}." for what, names in said.items() if names)


def _state(step: int, steps: Sequence[int]) -> str:
    if not step:
        return "untouched"
    return f"step {step}, the last" if step == max(steps) else f"step {step}"
