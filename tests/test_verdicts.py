"""The protocol's rules, on planted effects on both sides of every margin, and the tables that the page shows."""

import itertools
import math

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from ridge_utils import inference, paper, results, tasks
from ridge_utils.audit import rules, verdict_page, verdicts
from ridge_utils.errors import InputError
from ridge_utils.inference import Effect

BLOCKS = 10
CASE = {"model": "planted", "task": "made-up", "source": "synthetic"}
#: Half of the width of a planted interval, and what a case adds to a margin so that the interval leaves it out.
HALF, FAR = 0.01, 0.02

#: The statements as the protocol's table has them: page, quantity, split, variant, margin, side of the stored effect.
FALL = [("anatomy", f"{name}_{way}", "all", "last_block", 0.1, 1) for name, way in (
    ("information", "fall"), ("correlation", "fall"), ("probe", "fall"), ("information", "rise"),
)]  # fmt: skip
STATEMENTS = {
    "C1": FALL,
    "C2": [
        ("anatomy", "exit_gain", "ood", "last_block", 0.02, 1),
        ("anatomy", "information_fall", "ood", "last_block", 0.1, 1),
    ],
    "C3": [
        ("interventions", "recall_depth_difference", "train", "", 1, 1),
        ("interventions", "recall_depth", "train", "random", 7, 1),
    ],
    "C4": [("anatomy", f"gain_over_{third}", "all", "", 0.1, 1) for third in ("last", "first")],
    "C5": [
        ("residual_scaling", "scaled_accuracy_gain", "ood", "", 0.02, 1),
        ("residual_scaling", "scale_shift", "ood", "", 0.05, -1),
        ("residual_scaling", "ablation_contrast", "ood", "skip", 0.1, 1),
    ],
    "C6": [
        ("multi_token", "window_correlation", "all", "", 0.5, 1),
        ("multi_token", "level_growth", "all", "", 0.1, 1),
    ],
    "C8": [
        ("overfitting", "last_block_rise", "all", "", 0.1, 1),
        ("overfitting", "last_block_contrast", "all", "", 0.0, 1),
    ],
    "C9": [
        ("attention", "ridge_attention_fall", "id", "", 0.02, 1),
        ("attention", "ridge_attention_excess", "id", "", 0.0, 1),
        ("attention", "last_token_lead", "id", "", 0.0, 1),
    ],
}


def effect(quantity, estimate, *, half=HALF, **changes):
    row = {"split": "all", "step": 0, "train_seed": None, "sample_seed": None, "n": 1000, "variant": ""}
    made = Effect(estimate, estimate - half, estimate + half, math.nan, math.nan)
    return inference.effect_rows(made, (BLOCKS, "block"), quantity, **CASE | row | changes)


def value(quantity, number, *, layer=BLOCKS, **changes):
    row = {"split": "all", "step": 0, "train_seed": None, "sample_seed": None, "n": 1000}
    return results.measurements([number], [(layer, "block")], quantity, **CASE | row | changes)


def stored(parts):
    """Parts of tables by page, as :func:`verdicts.stored` gives them."""
    pages = {page: [table for other, table in parts if other == page] for page, _ in parts}
    return {page: {f"{page}.csv": (pd.concat(tables, ignore_index=True), {})} for page, tables in pages.items()}


def judged(claim, parts):
    return verdicts.judge(stored(parts)).query("claim == @claim").reset_index(drop=True)


def verdict(claim, parts):
    """The verdict of the first part of a claim."""
    return judged(claim, parts)["verdict"][0]


def beyond(margin, side, where):
    """An effect far on the claim's side of a margin, around it, or on the other side."""
    return side * (margin + {"holds": FAR, "undecided": 0.001, "refuted": -FAR}[where])


def planted(claim, states, **changes):
    """Tables in which the statements of a claim have these states; a state of None was not measured."""
    parts = [
        (page, effect(quantity, beyond(margin, side, where), split=split, variant=variant, **changes))
        for (page, quantity, split, variant, margin, side), where in zip(STATEMENTS[claim], states, strict=True)
        if where
    ]
    if claim == "C3":
        parts.append(("interventions", value("memorisation_ridge_layer", 7, **changes)))
    return parts


CASES = [(claim, place) for claim, statements in STATEMENTS.items() for place in range(len(statements))]


@pytest.mark.parametrize(("claim", "place"), CASES)
def test_every_statement_is_judged_by_its_own_margin(claim, place):
    def states(where):
        return [where if i == place else "holds" for i in range(len(STATEMENTS[claim]))]

    rows = judged(claim, planted(claim, states("holds")))
    own = rows[rows["part"] == rows["part"][0]].iloc[: len(STATEMENTS[claim])]
    assert (rows["verdict"][0], set(own["state"])) == ("reproduced", {"holds"})
    assert verdict(claim, planted(claim, states("undecided"))) == "undecided"
    # C2 is not asked where its second statement, the ridge itself, is refuted.
    other = {"C2": "not asked"}.get(claim, "partly")
    assert verdict(claim, planted(claim, states("refuted"))) == (other if place else "refuted here")
    # By itself the second statement of C2 is C1's.
    expected = "not measured" if (claim, place) == ("C2", 0) else "undecided"
    assert verdict(claim, planted(claim, states(None))) == expected


STATES = st.lists(st.sampled_from(["holds", "refuted", "undecided", "not measured"]), min_size=1, max_size=6)


@given(st.floats(-2, 2), st.floats(0, 2), st.floats(-2, 2), st.floats(0, 2))
def test_only_an_interval_beyond_the_margin_decides(estimate, half, margin, more):
    low, high = estimate - half, estimate + half
    state = rules.state(low, high, margin)
    assert (state == "holds") == (low > margin)
    assert (state == "refuted") == (high < margin)
    assert rules.state(low - more, high + more, margin) in ("undecided", state)


@given(STATES, st.data())
def test_less_certainty_never_decides_a_claim(states, data):
    place = data.draw(st.integers(0, len(states) - 1))
    less = [*states[:place], "undecided", *states[place + 1 :]]
    before, after = rules.verdict(states), rules.verdict(less)
    if before in ("undecided", "not measured"):
        assert after == "undecided"
    assert (after == "refuted here") <= (before == "refuted here")
    assert (after == "reproduced") <= (before == "reproduced")


@given(STATES)
def test_a_claim_follows_its_statements(states):
    verdict = rules.verdict(states)
    assert (verdict == "reproduced") == (set(states) == {"holds"})
    assert (verdict == "refuted here") == (states[0] == "refuted")
    assert (verdict == "partly") == (states[0] == "holds" and "refuted" in states)
    assert (verdict == "not measured") == (set(states) == {"not measured"})


# The errors.


def test_intervals_cover_for_all_checkpoints_of_a_claim_together():
    """At one checkpoint of four the reach is that of 1 - 0.05 / 4; another model makes no difference."""
    parts = [part for step in range(4) for part in planted("C4", ["holds", "holds"], step=step)]
    rows = judged("C4", parts)
    reach = HALF * stats.norm.isf(0.05 / 8) / stats.norm.isf(0.025)
    assert (rows["high"] - rows["estimate"]).tolist() == pytest.approx([reach] * 8)
    others = [(page, table.assign(model="another")) for page, table in planted("C4", ["refuted", "holds"], step=9)]
    both = judged("C4", [*parts, *others])
    pd.testing.assert_frame_equal(both[both["model"] == "planted"].reset_index(drop=True), rows)


def test_training_seeds_are_one_estimate():
    parts = [
        ("anatomy", effect(f"gain_over_{third}", 0.3 + 0.1 * seed, step=5, train_seed=seed))
        for third in ("last", "first")
        for seed in range(3)
    ]
    row = judged("C4", parts).iloc[0]
    expected = inference.together([Effect(e, e - HALF, e + HALF, math.nan, math.nan) for e in (0.3, 0.4, 0.5)])
    assert (row["estimate"], row["low"], row["seeds"]) == pytest.approx((0.4, expected.low, 3))


def test_the_page_says_how_many_examples_would_decide_and_what_could_be_seen():
    row = judged("C4", planted("C4", ["undecided", "holds"])).iloc[0]
    assert row["n_to_decide"] == pytest.approx(1000 * (HALF / 0.001) ** 2)
    # An interval that wide by the square root of the examples just leaves out the margin.
    assert HALF * math.sqrt(1000 / row["n_to_decide"]) == pytest.approx(row["estimate"] - row["margin"])
    error = HALF / stats.norm.isf(0.025)
    power = stats.norm.sf(row["margin"] + HALF, loc=row["detectable"], scale=error)
    assert power == pytest.approx(0.8)
    assert math.isnan(judged("C4", planted("C4", ["holds", "holds"]))["n_to_decide"][0])


# C1.


def peak(information="holds", correlation="holds", plug_in=0.4, bias=0.2, z=9.0):
    parts = planted("C1", [information, correlation, "holds", "holds"])
    parts += [("anatomy", value("ridge_z", z, variant="last_block"))] if z is not None else []
    shown = (("plug_in_fall", plug_in), ("bias_share", bias))
    return parts + [("anatomy", effect(name, number, variant="last_block")) for name, number in shown]


@pytest.mark.parametrize(
    ("planted_peak", "expected"),
    [
        (peak(), ("reproduced", "")),
        (peak(information="undecided", bias=0.7), ("artefact", "of bias")),
        (peak(information="refuted", bias=0.7), ("artefact", "of bias")),
        (peak(bias=0.7), ("reproduced", "")),
        (peak(information="refuted", bias=0.505), ("refuted here", "")),
        (peak(information="refuted", plug_in=0.1, bias=0.7), ("refuted here", "")),
        (peak(correlation="refuted"), ("artefact", "of spread")),
        (peak(correlation="refuted", plug_in=0.1), ("partly", "")),
        (peak(correlation="undecided"), ("undecided", "")),
        (peak(information="undecided", correlation="refuted"), ("undecided", "")),
    ],
)
def test_a_fall_that_is_made_is_an_artefact(planted_peak, expected):
    row = judged("C1", planted_peak).iloc[0]
    assert (row["verdict"], row["why"]) == expected
    assert math.isnan(row["share"]) == (row["verdict"] != "artefact")


def test_how_much_of_a_fall_is_made():
    assert judged("C1", peak(information="refuted", bias=0.7))["share"][0] == pytest.approx(0.7)
    assert judged("C1", peak(correlation="refuted"))["share"][0] == pytest.approx(1 - 0.08 / 0.12)


def test_nothing_is_divided_by_what_may_be_0():
    for where in ("holds", "refuted"):
        row = judged("C1", peak(information=where, z=2.9)).iloc[0]
        assert (row["verdict"], row["state"]) == ("undecided", "undecided")
        assert row["why"]
    assert verdict("C1", peak(information="refuted", z=2.9, bias=0.7)) == "artefact"
    # The measurement leaves out an effect that would be.
    left_out = [(page, table[~table["quantity"].str.startswith("information")]) for page, table in peak(z=1.0)]
    assert verdict("C1", left_out) == "undecided"


def test_a_checkpoint_without_a_divisor_counts_as_one():
    """It is undecided, not left out, and the interval of the other pays for both; so for a seed among several."""
    asked = [("anatomy", value("ridge_z", 9.0, step=step, variant="last_block")) for step in (0, 5)]
    rows = verdicts.cases(judged("C4", planted("C4", ["holds", "holds"]) + asked))
    assert rows["verdict"].tolist() == ["reproduced", "undecided"]
    assert rows["high"][0] - rows["estimate"][0] == pytest.approx(HALF * stats.norm.isf(0.0125) / stats.norm.isf(0.025))
    seeds = [("anatomy", value("ridge_z", 9.0, step=5, variant="last_block", train_seed=seed)) for seed in (0, 1)]
    assert verdict("C4", planted("C4", ["holds", "holds"], step=5, train_seed=0) + seeds) == "undecided"


def test_every_end_has_its_own_verdict():
    parts = planted("C1", ["holds"] * 4)
    ends = {"block_before": "refuted", "final_norm": "undecided"}
    for end, where in ends.items():
        states = zip(FALL, [where, "holds", "holds", "holds"], strict=True)
        parts += [("anatomy", effect(name, beyond(0.1, 1, state), variant=end)) for (_, name, *_), state in states]
    found = verdicts.cases(judged("C1", parts)).set_index("part")["verdict"]
    assert found.tolist() == ["reproduced", "refuted here", "undecided"]
    assert len(found) == len(rules.ENDS)


# Where a claim is not asked.


def test_exits_need_a_ridge_and_to_be_right_somewhere():
    parts = planted("C2", ["holds", "holds"])
    for accuracy, expected in ((0.0, "not asked"), (0.01, "reproduced")):
        exits = [("anatomy", value("early_exit_accuracy", accuracy, split="ood", layer=layer)) for layer in (1, 2)]
        assert verdict("C2", [*parts, *exits]) == expected
    assert verdict("C2", planted("C2", ["holds", None])) == "undecided"


@pytest.mark.parametrize(
    ("falls", "expected"),
    [
        ({}, "reproduced"),
        ({48: "holds", 0: "refuted"}, "reproduced"),
        ({48: "refuted", 0: "holds"}, "not asked"),
        ({0: "refuted", 20: "refuted"}, "not asked"),
        ({0: "refuted", 20: "undecided"}, "reproduced"),
    ],
)
def test_memorisation_needs_a_ridge(falls, expected):
    parts = planted("C3", ["holds", "holds"], step=48, train_seed=0)
    parts += [
        ("anatomy", effect("information_fall", beyond(0.1, 1, where), variant="last_block", step=step))
        for step, where in falls.items()
    ]
    assert verdict("C3", parts) == expected


@pytest.mark.parametrize(("recalled", "expected"), [(0.05, "not asked"), (0.2, "reproduced")])
def test_memorisation_needs_something_recalled(recalled, expected):
    recall = [
        ("interventions", value("recall_accuracy", share, layer=layer, split="train", variant="random"))
        for layer, share in ((1, 0.9), (BLOCKS, recalled))
    ]
    assert verdict("C3", planted("C3", ["holds", "holds"]) + recall) == expected


@pytest.mark.parametrize(
    ("losses", "expected"), [((2, 1, 3), "reproduced"), ((1, 2, 3), "not asked"), ((3, 2, 1), "not asked")]
)
def test_overfitting_needs_an_optimum_that_is_passed(losses, expected):
    parts = planted("C8", ["holds", "holds"], step=20)
    parts += [("overfitting", value("loss", loss, split="id", step=10 * i)) for i, loss in enumerate(losses)]
    assert verdict("C8", parts) == expected


# C7.


def depths(*states, whole="holds", step=7):
    fall = {"variant": "last_block", "train_seed": 0}
    parts = [
        ("truncation", effect("information_fall", beyond(0.1, 1, where), model=f"planted[:{n}]", step=9, **fall))
        for n, where in zip((4, 8, 12), states, strict=False)
    ]
    # Untouched, a model that was cut is broken.
    parts.append(("truncation", effect("information_fall", 0.9, model="planted[:4]", variant="last_block")))
    if whole:
        parts.append(("anatomy", effect("information_fall", beyond(0.1, 1, whole), step=step, **fall)))
        parts.append(("anatomy", effect("information_fall", -1.0, step=100, **fall)))
    return parts


@pytest.mark.parametrize(
    ("states", "whole", "expected"),
    [
        (("refuted", "holds", "holds"), "holds", "reproduced"),
        (("refuted", "refuted", "refuted"), "holds", "reproduced"),
        (("refuted", "undecided", "holds"), "holds", "reproduced"),
        (("refuted", "undecided", "undecided"), "holds", "undecided"),
        (("refuted", "holds", "refuted"), "holds", "partly"),
        (("holds", "holds", "holds"), "holds", "partly"),
        (("undecided",), "holds", "undecided"),
        (("refuted", "holds"), "refuted", "refuted here"),
        (("refuted", "holds"), None, "undecided"),
    ],
)
def test_a_ridge_needs_depth(states, whole, expected):
    rows = judged("C7", depths(*states, whole=whole))
    assert set(rows["verdict"]) == {expected}
    assert set(rows["model"]) == {"planted"}


@given(st.lists(st.sampled_from(["holds", "refuted", "undecided"]), max_size=5))
def test_the_order_of_depths_by_every_resolution(states):
    """The definition: what the undecided ones may be is tried."""
    ways = itertools.product(*(["holds", "refuted"] if state == "undecided" else [state] for state in states))
    broken = {"holds refuted" in " ".join(way) for way in ways}
    expected = {frozenset([True]): "refuted", frozenset([False]): "holds"}.get(frozenset(broken), "undecided")
    assert rules._ordered(states) == expected


# The judge and its tables.


def test_what_was_not_measured_is_said_for_every_claim():
    frame = verdicts.judge(stored(planted("C9", ["holds", "holds", "holds"])))
    assert list(dict.fromkeys(frame["claim"])) == list(rules.RULES)
    assert (frame.loc[frame["claim"] != "C9", "verdict"] == "not measured").all()
    own = frame[frame["claim"] == "C9"]
    assert set(own["files"]) == {"attention.csv"}
    assert dict(zip(own["part"], own["verdict"], strict=True)) == {"ID": "reproduced", "OOD": "not measured"}


def test_another_form_of_a_task_is_judged_by_itself():
    parts = {
        options.get("answer"): planted("C1", [where, "holds", "holds", "holds"], task=tasks.title("ecqa", options))
        for options, where in (({}, "refuted"), ({"answer": "letter"}, "holds"))
    }
    found = verdicts.cases(judged("C1", [*parts[None], *parts["letter"]])).query("part == 'last block'")
    assert found.set_index("task")["verdict"].to_dict() == {"ecqa": "refuted here", "ecqa:letter": "reproduced"}


def test_an_audit_stands_in_where_a_notebook_has_no_table():
    tables = {"audit": {"audit/x.csv": (pd.concat([table for _, table in planted("C1", ["holds"] * 4)]), {})}}
    row = verdicts.judge(tables).query("claim == 'C1'").iloc[0]
    assert (row["verdict"], row["files"]) == ("reproduced", "audit/x.csv")
    tables |= stored(planted("C1", ["refuted", "holds", "holds", "holds"]))
    row = verdicts.judge(tables).query("claim == 'C1'").iloc[0]
    assert (row["verdict"], row["files"]) == ("refuted here", "anatomy.csv")


@pytest.fixture
def two():
    """C4 reproduced untouched, refuted at step 5, and C1 nowhere."""
    return verdicts.judge(
        stored(planted("C4", ["holds", "holds"]) + planted("C4", ["refuted", "holds"], step=5, train_seed=0))
    )


def test_checkpoints_that_differ_are_mixed(two):
    total = verdicts.overall(two).query("claim == 'C4'").iloc[0]
    assert (total["reproduced"], total["refuted here"], total["verdict"]) == (1, 1, verdicts.MIXED)
    assert verdicts.overall(two).query("claim == 'C1'")["verdict"].tolist() == ["not measured"]
    assert len(verdicts.cases(two).query("claim == 'C4'")) == 2


def test_the_page_has_a_column_for_every_part_and_a_row_for_every_statement(two):
    grid = verdict_page.grid(two, list(rules.RULES))
    assert grid.data.shape == (1, 1 + sum(len(claim.parts) for claim in rules.RULES.values()))
    assert [column for column in grid.data.columns[1:] if grid.data[column].item() != "–"] == ["C4"]
    assert grid.data["C4"].item().split() == ["1", "R", "1", "X"]
    cases = verdict_page.case_table(two, ["C4"])
    assert cases.data["verdict"].tolist() == ["reproduced", "", "refuted here", ""]
    assert cases.data["state"].tolist() == ["holds", "holds", "refuted", "holds"]
    for table in (grid, cases, verdict_page.case_table(two, ["C1"])):
        assert "<table" in table.to_html()
    assert "anatomy.ipynb" in verdict_page.sources(two, "C4")


def test_colours_differ_without_red_and_green():
    """Lightness and blue against yellow, what every reader can see, tell the verdicts apart."""
    seen = [tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) for colour in verdict_page.COLOURS.values()]
    for one, other in itertools.combinations(seen, 2):
        (light, blue), (light2, blue2) = (((r + g) / 2, b - (r + g) / 2) for r, g, b in (one, other))
        assert math.hypot(light - light2, blue - blue2) > 20


def test_a_users_audit_is_found_can_be_left_out_and_leads_to_its_page(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    table = pd.concat([table for _, table in planted("C1", ["holds"] * 4)], ignore_index=True)
    results.write(table, tmp_path / "audit" / "mine-made-up" / "audit.csv", {})
    judged = verdicts.judge(verdicts.stored())
    assert judged.query("claim == 'C1'")["verdict"].iloc[0] == "reproduced"
    assert not any(verdicts.stored(audits=False).values())
    monkeypatch.setenv(verdicts.WITHOUT_AUDITS, "1")
    assert not any(verdicts.stored().values())
    assert '"../results/audit/mine-made-up/audit.html"' in verdict_page.case_table(judged, ["C1"]).to_html()


def test_an_audit_is_judged_by_what_it_measures_alone():
    table = pd.concat([table for _, table in planted("C1", ["holds"] * 4)], ignore_index=True)
    asked = value("ridge_z", 9.0, variant="last_block")
    judged = verdicts.judge({"audit": {"audit/x/audit.csv": (pd.concat([table, asked], ignore_index=True), {})}})
    assert set(judged.loc[judged["verdict"] != "not measured", "claim"]) <= {"C1", "C2", "C4"}
    assert {"C3", "C6", "C7", "C8"} <= set(verdicts.not_measured(judged))
    shown = verdict_page.summary(judged)
    assert shown["claim"].str[:2].isin({"C1", "C2", "C4"}).all()
    assert len(shown) == len(verdicts.cases(judged).query("state != 'not measured'"))


def test_claims_are_those_of_the_paper():
    assert list(rules.RULES) == paper.claims()["id"].tolist()
    assert verdicts.chosen(["C3", "C1"]) == ["C1", "C3"]
    assert verdicts.chosen([]) == list(rules.RULES)
    with pytest.raises(InputError, match="no claim 'C10'"):
        verdicts.chosen(["C10"])
