"""How often the rules are wrong near their margins: planted states whose true falls are known, judged many times.

``python -m tests.planted`` keeps the rates in ``results/planted.csv`` (half an hour on one thread).

A state is a direction of its class, noise, and a vector that all states share. Of each example's class a layer shows
the true one with probability sqrt(kept), else one drawn by chance. Pairs of which one is drawn know nothing of their
targets, and the spread of the states is the same, so with p the chance that two classes are the same
:math:`c - a b = kept \\cdot p (1 - p) (A_{same} - A_{other}) (1 - B_{other})`, and Mantel's r falls by 1 - kept.
"""

import functools
import sys
import time
from dataclasses import replace
from unittest import mock

import pandas as pd
import torch
from scipy import optimize
from torch import Tensor

from ridge_utils import results
from ridge_utils.audit import anatomy, probes, rules
from ridge_utils.audit.rules import RULES, Judgement, Reading
from ridge_utils.unbiased import Means

CLASSES, WIDTH, SIGNAL = 8, 32, 0.5
#: Share of the information at the ridge layer that the embedding and the blocks before the last have not.
BEFORE = (0.7, 0.4, 0.0, 0.05)
FALLS = (0.0, 0.05, 0.1, 0.2, 0.5)
#: Examples of the probe's true fall, which has no closed form, and pairs of the mean kernels.
MANY, PAIRS = 20_000, 400_000
#: What is planted: kept information of embedding, blocks and final norm, and the shared vector's length at each.
Source = tuple[list[float], list[float]]

_STATEMENTS = RULES["C1"].parts["last block"]
_PROBE = next(of for of in _STATEMENTS if of.quantity == "probe_fall")
_PARTS = {"verdict": _STATEMENTS, "verdict without the probe": [of for of in _STATEMENTS if of != _PROBE]}
_CONTEXT = {"model": "planted", "task": "made-up", "source": "own", "split": "all", "train_seed": None}


@functools.cache
def means(kept: float, shared: float) -> Means:
    """Means over the pairs of the population, those of squares left out."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, PAIRS, WIDTH, generator=generator) / WIDTH**0.5
    first, same, other = (SIGNAL * torch.eye(WIDTH)[i] + shared * torch.eye(WIDTH)[-1] for i in (0, 0, 1))
    one = torch.nn.functional.normalize(noise[0] + first, dim=-1)
    alike, apart = (
        torch.exp(2 * (one * torch.nn.functional.normalize(noise[1] + mean, dim=-1)).sum(-1) - 2).double().mean()
        for mean in (same, other)
    )
    p, b_other = 1 / CLASSES, torch.tensor(-2.0).double().exp()
    a, b = p * alike + (1 - p) * apart, p + (1 - p) * b_other
    c = a * b + kept * p * (1 - p) * (alike - apart) * (1 - b_other)
    return Means(a, b, c, torch.tensor(torch.nan), torch.tensor(torch.nan))


def kept_after(fall: float) -> float:
    """The ``kept`` at which information is so much less than where all is kept."""
    whole = means(1.0, 0.0).information
    return (torch.expm1((1 - fall) * whole) / torch.expm1(whole)).item()


def shared_after(fall: float) -> float:
    """The length of the shared vector at which information is so much less than without one."""
    wanted = (1 - fall) * means(1.0, 0.0).information.item()
    return optimize.brentq(lambda length: means(1.0, length).information.item() - wanted, 0, 4, xtol=1e-6)


def sources() -> dict[tuple[str, float], Source]:
    """What is planted, by its name and the true fall of information at the last block."""
    before, none = [kept_after(fall) for fall in BEFORE], [0.0] * len(BEFORE)
    found = {("lost", fall): ([*before, *[kept_after(fall)] * 2], [0.0] * 6) for fall in FALLS}
    found |= {("spread", fall): ([*before, 1.0, 1.0], [*none, *[shared_after(fall)] * 2]) for fall in FALLS[1:]}
    return found | {("nothing", 0.0): ([0.0] * 6, [*none, *[shared_after(0.5)] * 2])}


def draw(source: Source, n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """States, targets and labels of n examples."""
    generator = torch.Generator().manual_seed(seed)
    labels, others = torch.randint(CLASSES, (2, n), generator=generator)
    luck = torch.rand(n, generator=generator)
    kept, shared = (torch.tensor(values)[:, None] for values in source)
    shown = torch.where(luck < kept.sqrt(), labels, others)
    noise = torch.randn(len(kept), n, WIDTH, generator=generator) / WIDTH**0.5
    directions = torch.eye(WIDTH)
    states = SIGNAL * directions[shown] + noise + shared[..., None] * directions[-1]
    return states, torch.eye(CLASSES)[labels], labels


def truths(source: Source) -> dict[str, float]:
    """The true value of each statement's effect; NaN where there is nothing to fall."""
    (start, *_, end_kept, _), (*_, end_shared) = source
    ridge, end = means(max(source[0]), 0.0), means(end_kept, end_shared)
    fall = ridge.plug_in(anatomy.PAPER_N) - end.plug_in(anatomy.PAPER_N)
    null = ridge.plug_in_null(anatomy.PAPER_N) - end.plug_in_null(anatomy.PAPER_N)
    found = {
        "information_fall": 1 - end.information / ridge.information,
        "correlation_fall": 1 - end_kept if ridge.information > 0 else torch.nan,
        "probe_fall": 1 - readable(end_kept) / readable(1.0) if ridge.information > 0 else torch.nan,
        "information_rise": 1 - means(start, 0.0).information / ridge.information,
        "plug_in_fall": fall / ridge.plug_in(anatomy.PAPER_N),
        "bias_share": null / fall if fall > 0 else torch.nan,
    }
    # Rounded, so that what is planted at a margin lies there.
    return {name: round(float(value), 4) for name, value in found.items()}


@functools.cache
def readable(kept: float) -> float:
    """What a linear probe reads, nats; a shared vector does not change it."""
    (states,), _, labels = draw(([kept], [0.0]), MANY, 0)
    return probes.classify(states, labels).v_information


def judge(source: Source, n: int, draws: int, probed: int) -> list[Judgement]:
    """C1 at the last block in each draw, with the probe (in the first ``probed``) and without, each by itself."""
    tables = []
    for seed in range(draws):
        states, targets, labels = draw(source, n, seed)
        ids = labels if seed < probed else None
        # The other ends would take most of the time.
        with mock.patch.object(anatomy, "ENDS", {"last_block": -2}):
            tables.append(anatomy.effects(states, targets, _CONTEXT | {"step": seed}, target_ids=ids, seed=seed))
    # One call for all of them, which the judge takes for checkpoints: what it would share among them is given to each.
    with mock.patch.object(rules, "CONFIDENCE", 1 - draws * (1 - rules.CONFIDENCE)):
        judgements = rules.judge(replace(RULES["C1"], parts=_PARTS), {"anatomy": pd.concat(tables)})
    return [found for found in judgements if found.step < probed or found.part != "verdict"]


def named(verdict: str, why: str) -> str:
    """A verdict, and of an artefact how it is made."""
    return f"{verdict} {why}" if verdict == "artefact" else verdict


def outcomes(source: Source, n: int, draws: int, probed: int) -> pd.DataFrame:
    """How often each statement has each state and C1 each verdict, beside what the truth asks for.

    ``wrong`` is what says of a statement that it lies on a side of its margin where the truth does not.
    """
    true = truths(source)
    readings = [Reading(of, rules.state(true[of.quantity], true[of.quantity], of.margin)) for of in _STATEMENTS]
    counted = [reading.state for reading in readings if reading.statement.role != "shown"]
    fall, correlation, *_, plug_in, bias = (reading.state for reading in readings)
    is_true = {
        "reproduced": set(counted) == {"holds"},
        "partly": fall == "holds" and "refuted" in counted,
        "refuted here": fall == "refuted",
        "artefact of spread": fall == "holds" and correlation == "refuted",
        "artefact of bias": plug_in == bias == "holds",
    }
    made = RULES["C1"].made([replace(r, estimate=true[r.statement.quantity]) for r in readings])
    expected = dict.fromkeys(_PARTS, named("artefact", made[0]) if made else rules.verdict(counted))
    expected |= {reading.statement.quantity: reading.state for reading in readings}
    rows = []
    for judgement in judge(source, n, draws, probed):
        rows.append((judgement.part, named(judgement.verdict, judgement.why)))
        # A statement counts once in each draw: the probe's where it was asked, the others' where it need not be.
        for reading in judgement.readings:
            if (reading.statement == _PROBE) == (judgement.part == "verdict"):
                rows.append((reading.statement.quantity, reading.state))
    found = pd.DataFrame(rows, columns=["of", "outcome"]).value_counts(sort=False).reset_index()
    found["draws"] = found.groupby("of")["count"].transform("sum")
    found["truth"], found["expected"] = found["of"].map(true), found["of"].map(expected)
    decided = ~found["outcome"].isin(["undecided", "not measured"])
    agrees = found["outcome"].map(is_true).fillna(found["outcome"] == found["expected"]).astype(bool)
    return found.assign(wrong=decided & ~agrees)


def main(draws: int = 200, probed: int = 25) -> None:
    """Simulate every source at 200 and 1,000 examples and keep the table."""
    torch.set_num_threads(1)
    started, tables = time.monotonic(), []
    for (planted, fall), source in sources().items():
        for n in (200, 1000):
            tables.append(outcomes(source, n, draws, probed).assign(planted=planted, fall=fall, n=n))
            print(f"{planted}, {fall}, N = {n}: {time.monotonic() - started:.0f} s", flush=True)
    columns = ["planted", "fall", "n", "of", "truth", "expected", "outcome", "wrong", "count", "draws"]
    origin = results.provenance({"draws": draws, "probed": probed}, seconds=round(time.monotonic() - started))
    results.write(pd.concat(tables)[columns], results.FOLDER / "planted.csv", origin)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
