"""The rules of the verdicts, on planted evidence whose truth is known, and the tables that the page shows."""

import itertools
import math

import numpy as np
import pandas as pd
import pytest

from ridge_utils import inference, paper, results
from ridge_utils.audit import rules, verdicts
from ridge_utils.errors import InputError
from ridge_utils.inference import Effect

BLOCKS = 10
CASE = {"model": "planted", "task": "made-up", "source": "synthetic"}
ORIGIN = {"data": {"id": 100, "ood": 100}}
SURE, UNSURE = 1e-6, 0.4


def effect(quantity, estimate, p=SURE, *, split="all", variant="", step=0, train_seed=None):
    made = Effect(estimate, estimate - 0.01, estimate + 0.01, p, math.nan)
    row = {"split": split, "step": step, "train_seed": train_seed, "sample_seed": None, "n": 200, "variant": variant}
    return inference.effect_rows(made, (BLOCKS, "block"), quantity, **CASE, **row)


def profile(values, quantity, *, seed=0, split="all", step=0, model="planted", n=100, train_seed=None, **more):
    sites = results.sites(len(values) - 1, final_norm=False) if len(values) > 1 else [(BLOCKS, "block")]
    if quantity == "incremental_information":
        sites = results.sites(len(values), final_norm=False)[1:]
    row = {"split": split, "step": step, "train_seed": train_seed, "sample_seed": seed, "n": n}
    return results.measurements(list(values), sites, quantity, **(CASE | {"model": model}), **row, **more)


def judged(claim, origin=ORIGIN, **tables):
    stored = {page: {f"{page}.csv": (pd.concat(parts, ignore_index=True), origin)} for page, parts in tables.items()}
    rows = verdicts.judge(stored)
    return rows[rows["claim"] == claim].reset_index(drop=True)


def verdict(claim, **tables):
    rows = judged(claim, **tables)
    assert len(rows) == 1
    return rows["verdict"][0]


VARIANTS = ("", "excess", *rules.CONTROLS)


def falls(**p):
    return [effect("ridge_fall", 0.1, p.get(name or "raw", SURE), variant=name) for name in VARIANTS]


PROBE = [effect("v_information_fall", 0.1)]


@pytest.mark.parametrize(
    ("p", "probe", "expected"),
    [
        ({}, SURE, "reproduced"),
        ({"raw": UNSURE}, SURE, "not reproduced"),
        ({"excess": UNSURE}, SURE, "artefact of the estimator"),
        (dict.fromkeys(rules.CONTROLS, UNSURE), UNSURE, "artefact of the estimator"),
        (dict.fromkeys(rules.CONTROLS, UNSURE), SURE, "partly"),
        ({"whitened": UNSURE}, SURE, "partly"),
        ({}, UNSURE, "partly"),
    ],
)
def test_a_peak_must_survive_its_controls(p, probe, expected):
    read = [effect("v_information_fall", 0.1, probe)]
    assert verdict("C1", estimator_audit=falls(**p), decodability=read) == expected


def test_a_peak_without_a_probe_is_never_reproduced():
    assert verdict("C1", estimator_audit=falls()) == "partly"


def test_a_rise_is_no_peak_however_sure_it_is():
    rising = [effect("ridge_fall", -0.1, variant=name) for name in VARIANTS]
    assert verdict("C1", estimator_audit=rising, decodability=PROBE) == "not reproduced"


def test_each_training_seed_has_to_show_the_effect():
    def seeds(*estimates):
        parts = [
            effect("ridge_fall", value, variant=name, step=9, train_seed=seed)
            for name in VARIANTS
            for seed, value in enumerate(estimates)
        ]
        return verdict("C1", estimator_audit=parts, decodability=[effect("v_information_fall", 0.1, step=9)])

    assert seeds(0.1, 0.2) == "reproduced"
    assert seeds(0.1, -0.2) == "not reproduced"


def test_holm_runs_over_all_checkpoints_of_a_claim():
    # One test at p = 0.03 holds alone and not beside others.
    alone = [effect("ridge_fall", 0.1, 0.03)]
    assert verdict("C1", estimator_audit=alone) == "partly"
    many = [effect("ridge_fall", 0.1, 0.03 if step == 0 else 0.5, step=step) for step in range(5)]
    assert (judged("C1", estimator_audit=many)["verdict"] == "not reproduced").all()


def layers(estimate, half_width):
    made = Effect(estimate, estimate - half_width, estimate + half_width, 0.5, math.nan)
    row = {"split": "ood", "step": 0, "train_seed": None, "sample_seed": None, "n": 100}
    accuracy = profile(np.linspace(0, 1, BLOCKS + 1), "early_exit_accuracy", seed=None, split="ood")
    return [inference.effect_rows(made, (BLOCKS, "block"), "exit_layer_difference", **CASE, **row), accuracy]


@pytest.mark.parametrize(
    ("difference", "half_width", "gain_p", "fall_p", "expected"),
    [
        (0.0, 0.5, UNSURE, SURE, "reproduced"),
        (3.0, 1.0, UNSURE, SURE, "not reproduced"),
        (0.0, 0.5, SURE, SURE, "not reproduced"),
        (0.0, 5.0, UNSURE, SURE, "partly"),
        (0.0, 0.5, UNSURE, UNSURE, "not judged"),
        (3.0, 1.0, UNSURE, UNSURE, "not judged"),
        (0.0, 0.5, UNSURE, None, "partly"),
        (3.0, 1.0, UNSURE, None, "not reproduced"),
    ],
)
def test_the_best_exit_must_coincide_with_a_ridge(difference, half_width, gain_p, fall_p, expected):
    exits = [*layers(difference, half_width), effect("exit_accuracy_gain", 0.2, gain_p, split="ood")]
    tables = {} if fall_p is None else {"estimator_audit": [effect("ridge_fall", 0.1, fall_p, split="ood")]}
    assert verdict("C2", early_exit=exits, **tables) == expected


def test_an_exit_that_is_never_right_is_not_judged():
    exits = layers(0.0, 0.5)
    exits[1]["value"] = 0.0
    assert verdict("C2", early_exit=exits) == "not judged"


@pytest.mark.parametrize(
    ("p", "depth", "recalled", "expected"),
    [
        (SURE, 9, 0.8, "reproduced"),
        (SURE, 5, 0.8, "partly"),
        (UNSURE, 9, 0.8, "partly"),
        (UNSURE, 5, 0.8, "not reproduced"),
        (SURE, 9, 0.05, "not judged"),
    ],
)
def test_memorisation_comes_later_and_after_the_ridge(p, depth, recalled, expected):
    recall = profile(
        np.linspace(0, recalled, BLOCKS + 1), "recall_accuracy", seed=None, split="train", variant="random"
    )
    one = {"seed": None, "split": "train"}
    table = [
        effect("recall_depth_difference", 2.0, p, split="train"),
        recall,
        profile([depth], "recall_depth", variant="random", **one),
        profile([7], "memorisation_ridge_layer", **one),
    ]
    assert verdict("C3", interventions=table) == expected


def gains(first, middle, last, noise=0.001):
    rng = np.random.default_rng(0)
    base = np.repeat([first, middle, last], 4)
    return [profile(base + noise * rng.normal(size=12), "incremental_information", seed=seed) for seed in range(5)]


@pytest.mark.parametrize(
    ("thirds", "expected"),
    [
        ((0.1, 0.3, 0.2), "reproduced"),
        ((0.1, 0.2, 0.3), "not reproduced"),
        ((0.3, 0.2, 0.1), "not reproduced"),
        ((0.2, 0.2, 0.2), "not reproduced"),
        ((0.1, 0.2, 0.2), "partly"),
    ],
)
def test_the_middle_third_gains_most(thirds, expected):
    assert verdict("C4", incremental_information=gains(*thirds)) == expected


def test_scaling_asks_for_three_things():
    shift = effect("scale_shift", -0.2, split="ood")
    gain = effect("scaled_accuracy_gain", 0.1, split="ood")
    cut = effect("ablation_contrast", 0.3, split="ood", variant="skip")
    assert verdict("C5", residual_scaling=[shift, gain], interventions=[cut]) == "reproduced"
    wrong = effect("scale_shift", 0.2, split="ood")
    assert verdict("C5", residual_scaling=[wrong, gain], interventions=[cut]) == "partly"
    none = effect("scaled_accuracy_gain", 0.1, UNSURE, split="ood")
    assert verdict("C5", residual_scaling=[wrong, none]) == "not reproduced"
    assert verdict("C5", residual_scaling=[shift]) == "not judged"


def decoding(growth, same=True):
    rng = np.random.default_rng(1)
    shape = np.linspace(1, 2, BLOCKS + 1)
    parts = []
    for seed, (time, level) in itertools.product(range(5), ((1, 0.0), (50, growth))):
        values = (shape if same or time == 50 else shape[::-1]) + level + 1e-3 * rng.normal(size=BLOCKS + 1)
        name = "sequence_information_all_generated"
        parts.append(profile(values, name, seed=seed, n=50, decoding_step=time))
    return {"multi_token": parts, "origin": {"texts": {"generated": 100}}}


@pytest.mark.parametrize(
    ("growth", "same", "expected"),
    [(0.5, True, "reproduced"), (0.5, False, "partly"), (0.0, True, "partly"), (-0.5, False, "not reproduced")],
)
def test_the_profile_persists_over_decoding(growth, same, expected):
    assert verdict("C6", **decoding(growth, same)) == expected


def cuts(*with_ridge):
    rng = np.random.default_rng(2)
    parts = []
    for blocks, ridge in with_ridge:
        shape = np.linspace(0, 1, blocks + 1)
        if ridge:
            shape[-1] = 0.5
        parts += [
            profile(
                shape + 1e-3 * rng.normal(size=blocks + 1),
                "predictive_information",
                seed=seed,
                step=9,
                model=f"planted[:{blocks}]",
            )
            for seed in range(5)
        ]
    return parts


@pytest.mark.parametrize(
    ("ridges", "expected"),
    [
        ((False, True, True), "reproduced"),
        ((False, True, False, True), "partly"),
        ((False, True, False), "not reproduced"),
        ((True, True), "not reproduced"),
        ((False, False), "not reproduced"),
    ],
)
def test_a_ridge_needs_depth(ridges, expected):
    assert verdict("C7", truncation=cuts(*enumerate(ridges, 4))) == expected
    # The model that was not cut counts as the deepest.
    *shallower, deepest = enumerate(ridges, 4)
    whole = [table.assign(model="planted", step=7) for table in cuts(deepest)]
    rising = [table.assign(model="planted", step=100) for table in cuts((deepest[0], not deepest[1]))]
    if len(shallower) > 1:
        assert verdict("C7", truncation=cuts(*shallower), predictive_information=whole + rising) == expected


def _overfitting(before, after, losses=(2.0, 1.0, 1.5)):
    rng = np.random.default_rng(3)
    parts = []
    for step, loss, level in zip((0, 10, 20), losses, (0.0, before, after), strict=True):
        train_seed = 0 if step else None
        parts.append(profile([loss], "loss", seed=None, split="id", step=step, train_seed=train_seed))
        parts += [
            profile(
                np.linspace(0, 1, BLOCKS + 1) + level + 1e-3 * rng.normal(size=BLOCKS + 1),
                "predictive_information",
                seed=seed,
                step=step,
                train_seed=train_seed,
            )
            for seed in range(5)
        ]
    return parts


def test_overfitting_raises_the_last_block():
    assert verdict("C8", overfitting=_overfitting(0.0, 1.0)) == "reproduced"
    assert verdict("C8", overfitting=_overfitting(1.0, 0.0)) == "not reproduced"
    assert verdict("C8", overfitting=_overfitting(0.0, 1.0, losses=(3.0, 2.0, 1.0))) == "not judged"
    assert verdict("C8", overfitting=_overfitting(0.0, 1.0, losses=(1.0, 2.0, 3.0))) == "not judged"


def test_attention_moves_from_signal_to_positions():
    names = ("signal_attention_fall", "signal_attention_excess", "last_token_attention_excess")
    every = [effect(name, 0.1, split="id") for name in names]
    assert verdict("C9", attention=every) == "reproduced"
    assert verdict("C9", attention=[*every[:2], effect(names[2], -0.1, split="id")]) == "partly"
    assert verdict("C9", attention=[effect(name, -0.1, split="id") for name in names]) == "not reproduced"


def test_what_was_not_measured_is_said_for_every_claim():
    stored = {"attention": {"a.csv": (effect("signal_attention_fall", 0.1, split="id"), ORIGIN)}}
    frame = verdicts.judge(stored)
    assert list(dict.fromkeys(frame["claim"])) == list(verdicts.RULES)
    assert (frame.loc[frame["claim"] != "C9", "verdict"] == "not judged").all()
    assert frame.loc[frame["claim"] == "C9", "files"].tolist() == ["a.csv"]


def test_an_audit_stands_in_where_a_notebook_has_no_table():
    stored = {"audit": {"audit/x.csv": (pd.concat([*falls(), *PROBE]), ORIGIN)}}
    frame = verdicts.judge(stored)
    row = frame[frame["claim"] == "C1"].iloc[0]
    assert (row["verdict"], row["files"]) == ("reproduced", "audit/x.csv")
    stored["estimator_audit"] = {"e.csv": (pd.concat(falls(raw=UNSURE)), ORIGIN)}
    row = verdicts.judge(stored).query("claim == 'C1'").iloc[0]
    assert (row["verdict"], row["files"]) == ("not reproduced", "e.csv, audit/x.csv")


@pytest.fixture
def planted():
    """C1 on one model and task: reproduced untouched, not at step 5."""
    audit = pd.concat([*falls(), effect("ridge_fall", 0.1, UNSURE, step=5)])
    stored = {"estimator_audit": {"e.csv": (audit, ORIGIN)}, "decodability": {"d.csv": (pd.concat(PROBE), ORIGIN)}}
    return verdicts.judge(stored)


def test_checkpoints_that_differ_are_mixed(planted):
    total = verdicts.overall(planted).query("claim == 'C1'").iloc[0]
    assert (total["reproduced"], total["not reproduced"], total["verdict"]) == (1, 1, "mixed")


def test_a_users_audit_is_found_and_can_be_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    table = pd.concat([*falls(), *PROBE], ignore_index=True)
    table["model"] = "some/model: v2"
    file = verdicts.audit_file(table)
    assert file == tmp_path / "audit" / "some-model-v2-made-up" / "audit.csv"
    results.write(table, file, ORIGIN)
    row = verdicts.judge(verdicts.stored()).query("claim == 'C1'").iloc[0]
    assert (row["model"], row["verdict"]) == ("some/model: v2", "reproduced")
    assert not any(verdicts.stored(audits=False).values())
    (file.parent / "notes.txt").write_text("mine")
    with pytest.raises(InputError, match="there are some-model-v2-made-up"):
        verdicts.forget("../audit")
    verdicts.forget(file.parent.name)
    assert not any(verdicts.stored().values())
    assert [path.name for path in file.parent.iterdir()] == ["notes.txt"], "what is not ours stays"


def test_claims_are_those_of_the_paper():
    assert list(rules.RULES) == paper.claims()["id"].tolist()
    assert verdicts.chosen(["C3", "C1"]) == ["C1", "C3"]
    assert verdicts.chosen([]) == list(rules.RULES)
    with pytest.raises(InputError, match="no claim 'C10'"):
        verdicts.chosen(["C10"])
