"""How far numbers may move: from measured differences, and through the errors of effects."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import repeat
from scipy import stats

from ridge_utils import inference, results, tolerances
from ridge_utils.errors import InputError
from tests.tables import CONTEXT, profile


def differences(*rows):
    columns = ["changes", "step", "layer", "site", "quantity", "largest_difference"]
    return pd.DataFrame(rows, columns=columns).assign(condition="c", split="id", value=0.0)


PI = "predictive_information"


def test_tolerances_come_from_changed_arithmetic_alone_and_have_a_floor():
    values = [0.1] * 9
    stored = pd.concat([profile(values), profile(values, step=5)], ignore_index=True)
    measured = differences(
        *(("arithmetic", 5, layer, "block" if layer else "embedding", PI, 1e-5) for layer in range(8)),
        ("arithmetic", 5, 7, "final_norm", PI, 0.01),
        ("arithmetic", 5, 2, "block", PI, 0.04),
        ("seed", 5, 6, "block", PI, 0.5),
        ("arithmetic", 0, 6, "block", PI, 0.9),
    )
    tolerance = tolerances.tolerance(stored, measured)
    assert tolerance.iloc[:9].tolist() == [1e-3] * 9, "the untouched model's are fixed"
    assert tolerance.iloc[9:].tolist() == [0.08] * 5 + [1e-3] * 3 + [0.02], "layer 2 and two on either side"


def effect(step, **changes):
    """A fall of 0.2 with a standard error of 0.05, over 100 examples."""
    values = inference.Effect(0.2, 0.1, 0.3, 0.0001, 0.4)
    context = CONTEXT | {"step": step, "sample_seed": None, "n": 100} | changes
    return inference.effect_rows(values, (3, "block"), "signal_attention_fall", **context)


def test_what_belongs_to_an_effect_may_move_as_far_as_its_estimate_moves_it():
    stored = pd.concat([effect(0), effect(5)], ignore_index=True)
    measured = differences(("arithmetic", 5, 3, "block", "signal_attention_fall", 0.01))
    tolerance = tolerances.tolerance(stored, measured)
    assert tolerance.tolist()[:4] == pytest.approx([1e-4, 4e-4, 4e-4, 4e-4])
    # The estimate may move by 0.02: 0.02 / (0.1 / 3) errors.
    moved, score = 0.6, stats.norm.isf(0.00005)
    p = 2 * stats.norm.sf(score - moved * (1 + score)) - 0.0001
    assert tolerance.tolist()[5:] == pytest.approx([0.02, 0.08, 0.08, p, moved * (0.2 + 0.4)])
    assert tolerance.tolist()[:5] == pytest.approx(tolerances.tolerance(effect(0), None).tolist())


def test_a_measured_difference_of_a_p_value_counts_where_it_is_more():
    measured = differences(
        ("arithmetic", 5, 3, "block", "signal_attention_fall", 1e-5),
        ("arithmetic", 5, 3, "block", "signal_attention_fall_p", 0.02),
    )
    tolerance = tolerances.tolerance(effect(5), measured)
    assert tolerance.tolist()[3] == pytest.approx(0.04)


def test_the_parts_of_an_effect_move_no_further_than_that():
    """Effects of moved examples, against the tolerances that follow from how far their means moved."""
    rng = np.random.default_rng(0)
    # Where hardly an effect is seen, the p-value is large and can only fall.
    for size, count, noise in ((0.0, 40, 0.1), (0.05, 60, 1.0), (0.2, 60, 0.3), (0.5, 100, 0.05), (2.0, 30, 0.5)):
        values = rng.normal(size, 1, count)
        values += size - values.mean()
        before = inference.paired_effect(np.zeros(count), values)
        for _ in range(8):
            after = inference.paired_effect(np.zeros(count), values + rng.normal(0, noise, count))
            # The tolerance of a mean is twice the largest move that was seen, so hardly below twice its usual one.
            allowed = pd.Series([2 * noise / np.sqrt(count)])
            frame = pd.DataFrame(
                {"low": [before.low], "high": [before.high], "p": [before.p], "effect_size": [before.size], "n": count}
            )
            (tolerance,) = tolerances.effect_tolerance(frame, allowed).to_dict("records")
            for suffix, part in (("_low", "low"), ("_high", "high"), ("_p", "p"), ("_effect_size", "size")):
                assert abs(getattr(after, part) - getattr(before, part)) <= tolerance[suffix], (size, noise, part)


def test_an_effect_without_a_spread_has_a_tolerance():
    frame = pd.DataFrame({"low": [0.0, 3.0], "high": [0.0, 3.0], "p": [1.0, 0.0], "effect_size": [0.0, np.nan], "n": 9})
    tolerance = tolerances.effect_tolerance(frame, pd.Series([0.03, 0.0]))
    assert tolerance["_p"].tolist() == pytest.approx([1.0, 4e-4]), "no effect at all may become one; what is fixed, not"
    assert tolerance["_low"].tolist() == pytest.approx([0.12, 0.0])
    moved = tolerances.effect_tolerance(frame, pd.Series([0.03, 0.03]))
    assert moved["_p"].tolist() == pytest.approx([1.0, 1.0])


def test_a_quantity_without_a_tolerance_is_refused():
    for quantity in ("something", "something_low", "accuracy_of_something"):
        stored = profile([0.1, 0.2, 0.3], quantity=quantity)
        for measured in (None, differences(("arithmetic", 5, 1, "block", PI, 0.01))):
            with pytest.raises(InputError, match=f"'{quantity}' has no tolerance"):
                tolerances.tolerance(stored, measured)


def test_variants_have_tolerances_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    parts = [profile([0.1, 0.2, 0.3, 0.3], step=5, variant=v) for v in ("", "centred")]
    stored = pd.concat(parts, ignore_index=True)
    plain = differences(("arithmetic", 5, 1, "block", PI, 0.02))
    assert tolerances.tolerance(stored, plain).tolist() == [1e-3, 0.04, 1e-3, 1e-3] + [1e-3] * 4
    both = pd.concat([plain.assign(variant=""), plain.assign(variant="centred", largest_difference=0.03)])
    results.write(both, tmp_path / "differences" / "a.csv", {})
    read = tolerances.differences_of("a")
    assert tolerances.tolerance(stored, read).tolist() == [1e-3, 0.04, 1e-3, 1e-3, 1e-3, 0.06, 1e-3, 1e-3]


@pytest.fixture
def stored_results(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    table = pd.concat([profile([0.1, 0.2, 0.3, 0.3]), profile([0.1, 0.2, 0.3, 0.3], step=5)], ignore_index=True)
    results.write(table, tmp_path / "name.csv", {"parameters": {"steps": 5, "seeds": [0]}})
    measured = differences(("arithmetic", 5, 1, "block", PI, 0.01))
    results.write(measured, tmp_path / "differences" / "name.csv", {})
    return table


def test_check_passes_within_and_fails_beyond_tolerance(stored_results):
    parameters = {"steps": 5, "seeds": [0]}
    said = tolerances.check(stored_results, "name", parameters)
    assert "untouched model: 4 values of predictive_information agree" in said
    assert "after training: 4 values of predictive_information agree" in said
    for row, allowed in ((1, 1e-3), (5, 0.02), (7, 1e-3)):
        for factor, passes in ((0.99, True), (1.01, False)):
            moved = stored_results.copy()
            moved.loc[row, "value"] += factor * allowed
            if passes:
                assert tolerances.check(moved, "name", parameters) == said
            else:
                with pytest.raises(AssertionError, match="1 of 8"):
                    tolerances.check(moved, "name", parameters)


def test_without_measured_differences_every_value_must_agree_as_the_untouched_models_do(stored_results):
    (results.FOLDER / "differences" / "name.csv").unlink()
    parameters = {"steps": 5, "seeds": [0]}
    assert "after training: 4 values" in tolerances.check(stored_results, "name", parameters)
    stored_results.loc[5, "value"] += 1.1e-3
    with pytest.raises(AssertionError, match="1 of 8"):
        tolerances.check(stored_results, "name", parameters)


def test_differences_of_one_model_say_nothing_about_another():
    stored = pd.concat([profile([0.1, 0.2, 0.3, 0.3], step=5, model=m) for m in ("a", "b")], ignore_index=True)
    measured = differences(("arithmetic", 5, 1, "block", PI, 0.02)).assign(model="b")
    assert tolerances.tolerance(stored, measured).tolist() == [1e-3] * 5 + [0.04] + [1e-3] * 2


def test_check_compares_nothing_under_other_parameters(stored_results):
    said = tolerances.check(stored_results.iloc[:2], "name", {"steps": 6, "seeds": [0]})
    assert "nothing to compare with" in said


def test_repeat_runs_each_condition_once_in_its_own_cache(tmp_path, monkeypatch):
    trained = [profile([0.1, 0.2, 0.3, 0.3], sample_seed=s, step=5) for s in (0, 1)]
    untouched = profile([0.1, 0.2, 0.3, 0.3], train_seed=None)
    reference = pd.concat([*trained, untouched], ignore_index=True)
    calls = []

    def run(command, env, check):
        calls.append((command, env))
        output = command[command.index("-o") + 1]
        moved = reference.assign(value=reference["value"] + [0, 0.1, 0, 0, 0, -0.2, 0, 0, 0, 0, 0, 0])
        moved["train_seed"] = moved["train_seed"].replace(0, 1)
        given = dict(default, **({"training_seeds": [1]} if "training_seeds=[1]" in command else {}))
        results.write(moved, type(tmp_path)(output).with_suffix(".csv"), {"parameters": given})

    default = {"training_seeds": [0], "device": "auto"}
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    results.write(reference, tmp_path / "results" / "nb.csv", {"parameters": default | {"device": "cpu"}})
    monkeypatch.setattr(repeat, "subprocess", SimpleNamespace(run=run))
    names = ["seed 1", "1 thread"]
    out, origin = results.read(repeat.repeat("nb", tmp_path, names))
    assert "training_seeds=[1]" in calls[0][0]
    assert calls[1][1]["OMP_NUM_THREADS"] == "1"
    assert calls[0][1]["RIDGE_CACHE"] != calls[1][1]["RIDGE_CACHE"]
    found = out[(out["layer"] == 1) & (out["condition"] == "seed 1")].set_index("step")
    assert found.loc[0, "largest_difference"] == 0
    block = found.loc[5]
    assert block["largest_difference"] == pytest.approx(0.2)
    assert block["value"] == pytest.approx(0.15)
    assert list(origin["runs"]) == names
    assert tolerances.differences_of("nb")["variant"].eq("").all()
    repeat.repeat("nb", tmp_path, names)
    assert len(calls) == 2, "what is there should not be run again"
    results.write(reference, tmp_path / "results" / "nb.csv", {"parameters": default | {"steps": 9}})
    repeat.repeat("nb", tmp_path, names)
    assert len(calls) == 4, "runs with other parameters must not become tolerances"
    with pytest.raises(InputError, match="'2 threads'"):
        repeat.repeat("nb", tmp_path, ["2 threads"])
