"""How each of the nine claims is judged: the rules of the book's protocol, version 2, most of them data.

A claim is a few statements, each an effect that a notebook's table holds and the smallest effect that counts. One
function says on which side of its margin an interval lies, one makes a verdict of a claim's statements.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

import pandas as pd

from ridge_utils import inference
from ridge_utils.audit.anatomy import SURE
from ridge_utils.inference import CONFIDENCE, Effect

State = Literal["holds", "refuted", "undecided", "not measured"]
Verdict = Literal["reproduced", "partly", "refuted here", "undecided", "artefact", "not asked", "not measured"]
#: Tables of one model on one task, by the notebook that measured them; empty where a notebook was not run.
Tables = Mapping[str, pd.DataFrame]

#: The ends that C1 is judged at, by the variant that the tables name.
ENDS = {"last_block": "last block", "block_before": "block before it", "final_norm": "final norm"}
#: For C3, the share of random targets from which on something was memorised at all.
RECALLED = 0.1
#: For C7, the name of a model that was cut after so many blocks.
CUT = r"\[:\d+\]$"

_INTERVAL = ["estimate", "low", "high"]
_SEED = ["model", "step", "train_seed"]


@dataclass(frozen=True)
class Statement:
    """An effect, the smallest that counts, and where a table holds it."""

    #: what it says, for the reader
    says: str
    #: the notebook whose table holds it
    page: str
    quantity: str
    margin: float
    unit: str = "relative"
    split: str = "all"
    variant: str = ""
    #: -1 where the stored effect has the claim's side negative
    sign: int = 1
    #: a quantity whose value is taken off the effect
    less: str = ""
    #: a quantity that says how many standard errors the divisor of the effect lies above 0
    divisor: str = ""
    #: a quantity of every checkpoint that was asked, one without the effect has no divisor clearly above 0
    beside: str = ""
    #: the claim's own; ``borrowed``, so that alone it makes no case of the claim; ``shown``, no part of the verdict
    role: Literal["own", "borrowed", "shown"] = "own"


@dataclass(frozen=True)
class Reading:
    """What the tables say of a statement at one checkpoint."""

    statement: Statement
    state: State = "not measured"
    #: the effect, the claim's side positive
    estimate: float = math.nan
    #: ends of the interval, which covers 95 % for all checkpoints together
    low: float = math.nan
    high: float = math.nan
    standard_error: float = math.nan
    #: examples
    n: float = math.nan
    #: training seeds; 0 for the untouched model
    seeds: int = 0
    #: why it is undecided, where the interval does not say so
    why: str = ""

    @property
    def n_to_decide(self) -> float:
        """Examples with which the interval would leave out the margin, were the estimate to stay."""
        beyond = self.estimate - self.statement.margin
        holds_margin = self.low <= self.statement.margin <= self.high
        return self.n * ((self.high - self.low) / 2 / beyond) ** 2 if holds_margin and beyond else math.nan

    @property
    def detectable(self) -> float:
        """The effect that would hold with a chance of 80 %."""
        return self.statement.margin + (self.high - self.low) / 2 + NormalDist().inv_cdf(0.8) * self.standard_error


@dataclass(frozen=True)
class Judgement:
    """A verdict on a claim at one checkpoint."""

    step: int
    #: the end that C1, the split that C9 is judged at
    part: str
    verdict: Verdict
    #: what the states of the statements do not say
    why: str
    #: how much of the fall is made, where the verdict is artefact
    share: float
    readings: Sequence[Reading]


@dataclass(frozen=True)
class Claim:
    """A claim as statements, the first of which makes it."""

    #: the notebook that holds the figure
    page: str
    #: statements by part; each part has a verdict of its own
    parts: Mapping[str, Sequence[Statement]]
    #: why it is not asked at a step; the empty text where it is
    not_asked: Callable[[Tables, int, Sequence[Reading]], str] = lambda *_: ""
    #: how the effect is made and what share of it, if it is
    made: Callable[[Sequence[Reading]], tuple[str, float] | None] = lambda _: None
    #: step, part and readings of each case; by default one for each checkpoint and part
    cases: "Callable[[Claim, Tables], Iterable[tuple[int, str, Sequence[Reading]]]] | None" = None

    @property
    def pages(self) -> list[str]:
        """The notebooks whose tables it is judged by."""
        return list(dict.fromkeys([self.page, *(of.page for part in self.parts.values() for of in part)]))


def state(low: float, high: float, margin: float) -> State:
    """On which side of its margin an interval lies."""
    if math.isnan(low) or math.isnan(high):
        return "not measured"
    return "holds" if low > margin else "refuted" if high < margin else "undecided"


def verdict(states: Sequence[State]) -> Verdict:
    """The verdict on a claim whose statements, the one that makes it first, have these states."""
    if set(states) == {"not measured"}:
        return "not measured"
    if states[0] == "refuted":
        return "refuted here"
    if states[0] == "holds" and "refuted" in states:
        return "partly"
    return "reproduced" if set(states) == {"holds"} else "undecided"


def judge(claim: Claim, tables: Tables) -> list[Judgement]:
    """The verdicts on a claim, for one model on one task."""
    judgements = []
    for step, part, readings in (claim.cases or _by_step)(claim, tables):
        counted = [reading for reading in readings if reading.statement.role != "shown"]
        found, share = verdict([reading.state for reading in counted]), math.nan
        unasked = "its first statement was not measured" if counted[0].state == "not measured" else ""
        why = next((reading.why for reading in counted if reading.why), unasked) if found == "undecided" else ""
        if made := claim.made(readings):
            found, (why, share) = "artefact", made
        elif reason := claim.not_asked(tables, step, readings):
            found, why = "not asked", reason
        judgements.append(Judgement(step, part, found, why, share, readings))
    return judgements


def _by_step(claim: Claim, tables: Tables) -> Iterable[tuple[int, str, Sequence[Reading]]]:
    effects = {of: _effects(tables, of) for part in claim.parts.values() for of in part}
    steps = sorted({int(step) for of, rows in effects.items() if of.role == "own" for step in rows["step"]})
    for step in steps:
        for part, statements in claim.parts.items():
            yield step, part, [_read(of, _at(effects[of], step), len(steps)) for of in statements]


def _by_depth(claim: Claim, tables: Tables) -> Iterable[tuple[int, str, Sequence[Reading]]]:
    """One case for C7: the models that were cut, fine-tuned, and the uncut one at the step that is nearest."""
    deepest, shallowest, order = claim.parts[""]
    whole, cut = _effects(tables, deepest), _effects(tables, replace(deepest, page=claim.page))
    whole, cut = whole[whole["step"] > 0], cut[(cut["step"] > 0) & cut["model"].str.contains(CUT)]
    if cut.empty:
        return
    step = int(cut["step"].max())
    if len(whole):
        whole = _at(whole, min(whole["step"], key=lambda trained: abs(trained - step)))
    cut = _at(cut, step)
    by_depth = dict(list(cut.groupby(cut["model"].str.extract(r"(\d+)\]$", expand=False).astype(int))))
    end = _read(deepest, whole, 1)
    falls = [
        _read(replace(deepest, says=f"fall at {blocks} blocks", page=claim.page, role="shown"), rows, 1)
        for blocks, rows in by_depth.items()
    ]
    between = Reading(order, _ordered([fall.state for fall in (*falls, end)]))
    yield step, "", [end, _read(shallowest, _turned(by_depth[min(by_depth)]), 1), between, *falls]


def _at_the_end(claim: Claim, tables: Tables) -> Iterable[tuple[int, str, Sequence[Reading]]]:
    """One case for C8, at the last checkpoint, also where no optimum is passed and so no effect was written."""
    (statements,) = claim.parts.values()
    effects = [_effects(tables, of) for of in statements]
    steps = {int(step) for rows in effects for step in rows["step"]}
    if not steps and _no_optimum(tables, 0, ()):
        steps = {int(_values(tables[claim.page], "loss", "id")["step"].max())}
    for step in sorted(steps):
        yield step, "", [_read(of, _at(rows, step), len(steps)) for of, rows in zip(statements, effects, strict=True)]


def _ordered(states: Sequence[State]) -> State:
    """Whether what once holds is refuted no more; where one is undecided, whichever way it is."""
    pairs = [(earlier, later) for place, earlier in enumerate(states) for later in states[place + 1 :]]
    if ("holds", "refuted") in pairs:
        return "refuted"
    return "holds" if all(earlier == "refuted" or later == "holds" for earlier, later in pairs) else "undecided"


def _read(statement: Statement, rows: pd.DataFrame, checkpoints: int) -> Reading:
    """A statement at one of so many checkpoints, from a row per training seed."""
    why = "what it is divided by is not clearly above 0" if rows["z"].min() < SURE else ""
    if rows.empty or rows[_INTERVAL].isna().any(axis=None):
        return Reading(statement, "undecided" if why else "not measured", why=why)
    confidence = 1 - (1 - CONFIDENCE) / checkpoints
    seeds = [Effect(*row, math.nan, math.nan) for row in rows[_INTERVAL].itertuples(index=False)]
    effect = inference.together(seeds, confidence)
    found = "undecided" if why else state(effect.low, effect.high, statement.margin)
    error = (effect.high - effect.low) / 2 / NormalDist().inv_cdf((1 + confidence) / 2)
    trained = int(rows["train_seed"].notna().sum())
    return Reading(statement, found, effect.estimate, effect.low, effect.high, error, rows["n"].min(), trained, why)


def _effects(tables: Tables, statement: Statement) -> pd.DataFrame:
    """The effects of a statement by step and training seed, the claim's side positive, with the divisor's ``z``."""
    table = tables[statement.page]
    rows = table[(table["split"] == statement.split) & (table["variant"] == statement.variant)]
    asked = _by_seed(table[table["split"] == statement.split], statement.beside, "asked")
    if asked.empty and not (rows["quantity"] == statement.quantity).any():
        return pd.DataFrame(columns=[*_SEED, "n", *_INTERVAL, "z"])
    effects = inference.effects(rows[[*_SEED, "n", "quantity", "value"]], statement.quantity).assign(z=math.nan)
    if statement.divisor:
        effects = effects.drop(columns="z").merge(_by_seed(rows, statement.divisor, "z"), "left", _SEED)
    if statement.beside:
        effects = effects.merge(asked, "outer", _SEED)
        effects["z"] = effects["z"].mask(effects["estimate"].isna(), 0.0)
    if statement.less:
        less = effects[_SEED].merge(_by_seed(table, statement.less, "less"), "left", _SEED)["less"]
        effects[_INTERVAL] = effects[_INTERVAL].sub(less, axis=0)
    return effects if statement.sign > 0 else _turned(effects)


def _turned(effects: pd.DataFrame) -> pd.DataFrame:
    return effects.assign(estimate=-effects["estimate"], low=-effects["high"], high=-effects["low"])


def _at(rows: pd.DataFrame, step: int) -> pd.DataFrame:
    return rows[rows["step"] == step]


def _by_seed(table: pd.DataFrame, quantity: str, name: str) -> pd.DataFrame:
    """The value of a quantity at each checkpoint of each training seed, in the column ``name``."""
    rows = table[table["quantity"] == quantity]
    return rows.groupby(_SEED, dropna=False)["value"].mean().rename(name).reset_index()


def _values(table: pd.DataFrame, quantity: str, split: str, variant: str = "") -> pd.DataFrame:
    return table[(table["quantity"] == quantity) & (table["split"] == split) & (table["variant"] == variant)]


def _made(readings: Sequence[Reading]) -> tuple[str, float] | None:
    fall, correlation, *_, plug_in, bias = readings
    if plug_in.state == bias.state == "holds" != fall.state:
        return "of bias", bias.estimate
    if plug_in.state == fall.state == "holds" and correlation.state == "refuted":
        return "of spread", 1 - correlation.estimate / fall.estimate
    return None


def _no_fall_or_exit(tables: Tables, step: int, readings: Sequence[Reading]) -> str:
    if readings[1].state == "refuted":
        return "no fall on OOD examples"
    exits = _at(_values(tables[readings[0].statement.page], "early_exit_accuracy", "ood"), step)
    return "no exit is ever right" if exits["value"].max() == 0 else ""


def _not_memorised(tables: Tables, step: int, _: Sequence[Reading]) -> str:
    falls = {trained: fall.state for trained, _, (fall,) in _by_step(Claim("anatomy", {"": [_FALL]}), tables)}
    if ({falls[step]} if step in falls else set(falls.values())) == {"refuted"}:
        return "no ridge at the last block"
    recall = _at(_values(tables["interventions"], "recall_accuracy", "train", "random"), step)
    recalled = recall.loc[recall["layer"] == recall["layer"].max(), "value"].mean()
    return "less than a tenth is recalled" if recalled < RECALLED else ""


def _no_optimum(tables: Tables, _step: int, _: Sequence[Reading]) -> str:
    losses = _values(tables["overfitting"], "loss", "id").groupby("step")["value"].mean()
    return "no optimum is passed" if len(losses) and losses.idxmin() in (0, losses.index.max()) else ""


def _ridge(end: str) -> list[Statement]:
    of_end = {"page": "anatomy", "variant": end, "beside": "ridge_z"}
    return [
        Statement("fall of I", quantity="information_fall", margin=0.1, divisor="ridge_z", **of_end),
        Statement("fall of Mantel's r, centred", quantity="correlation_fall", margin=0.1, **of_end),
        Statement("fall of what a probe reads", quantity="probe_fall", margin=0.1, **of_end),
        Statement("rise of I to the ridge layer", quantity="information_rise", margin=0.1, divisor="ridge_z", **of_end),
        Statement("fall of the plug-in I, N = 200", quantity="plug_in_fall", margin=0.1, role="shown", **of_end),
        Statement("share of it that is bias", quantity="bias_share", margin=0.5, role="shown", **of_end),
    ]


def _attention(split: str) -> list[Statement]:
    of_split = {"page": "attention", "unit": "attention", "split": split}
    return [
        Statement("fall of attention to the signal", quantity="ridge_attention_fall", margin=0.02, **of_split),
        Statement("signal over chance, ridge layer", quantity="ridge_attention_excess", margin=0.0, **of_split),
        Statement("last token over signal, last block", quantity="last_token_lead", margin=0.0, **of_split),
    ]


_FALL, *_ = _ridge("last_block")
_OOD_FALL = replace(_FALL, says="fall of I, OOD", split="ood", role="borrowed")

# A line says what a statement says, then page, quantity, margin, unit, split and variant.
# fmt: off
#: The nine claims; the margins are the protocol's.
RULES: dict[str, Claim] = {
    "C1": Claim("anatomy", {name: _ridge(end) for end, name in ENDS.items()}, made=_made),
    "C2": Claim("early_exit", {"": [
        Statement("exit of the ridge layer over the last",
                  "anatomy", "exit_gain", 0.02, "accuracy", "ood", "last_block"),
        _OOD_FALL,
    ]}, _no_fall_or_exit),
    "C3": Claim("interventions", {"": [
        Statement("random targets recalled later than intact",
                  "interventions", "recall_depth_difference", 1.0, "blocks", "train"),
        Statement("random targets recalled after the layer of the paper's I",
                  "interventions", "recall_depth", 0.0, "blocks", "train", "random", less="memorisation_ridge_layer"),
    ]}, _not_memorised),
    "C4": Claim("anatomy", {"": [
        Statement("middle third over the last", "anatomy", "gain_over_last", 0.1, beside="ridge_z"),
        Statement("middle third over the first", "anatomy", "gain_over_first", 0.1, beside="ridge_z"),
    ]}),
    "C5": Claim("residual_scaling", {"": [
        Statement("accuracy gained by scales, OOD",
                  "residual_scaling", "scaled_accuracy_gain", 0.02, "accuracy", "ood"),
        Statement("last scale, ID less OOD", "residual_scaling", "scale_shift", 0.05, "scale", "ood", sign=-1),
        Statement("loss without a block of the ridge over a last one",
                  "residual_scaling", "ablation_contrast", 0.1, "nats", "ood", "skip"),
    ]}),
    "C6": Claim("multi_token", {"": [
        Statement("first and last profile alike", "multi_token", "window_correlation", 0.5, "rank correlation"),
        Statement("growth of the level, less that of shuffled texts", "multi_token", "level_growth", 0.1),
    ]}),
    "C7": Claim("truncation", {"": [
        replace(_FALL, says="fall with all blocks"),
        Statement("no fall with the fewest", "truncation", "information_fall", -0.1, variant="last_block", sign=-1),
        Statement("once it holds, refuted at no greater depth", "truncation", "", math.nan, ""),
    ]}, cases=_by_depth),
    "C8": Claim("overfitting", {"": [
        Statement("rise of I past the lowest loss",
                  "overfitting", "last_block_rise", 0.1, "per doubling", beside="ridge_z"),
        Statement("less the rise before it",
                  "overfitting", "last_block_contrast", 0.0, "per doubling", beside="ridge_z"),
        Statement("rise of Mantel's r, centred",
                  "overfitting", "last_block_correlation_rise", 0.1, "per doubling", role="shown"),
        Statement("rise of what a probe reads",
                  "overfitting", "last_block_probe_rise", 0.1, "per doubling", role="shown"),
    ]}, _no_optimum, cases=_at_the_end),
    "C9": Claim("attention", {split.upper(): _attention(split) for split in ("id", "ood")}),
}
# fmt: on
