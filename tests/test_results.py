import numpy as np
import pandas as pd
import pytest

from ridge_utils import paper, results, statistics
from ridge_utils.errors import InputError, StorageError

CONTEXT = {
    "model": "m", "task": "t", "source": "own", "split": "id", "step": 0, "train_seed": 0, "sample_seed": 0, "n": 10,
}  # fmt: skip


def profile(values, **changes):
    quantity = changes.pop("quantity", "predictive_information")
    final_norm = quantity == "predictive_information"
    blocks = len(values) - 1 - final_norm
    return results.measurements(values, results.sites(blocks, final_norm), quantity, **(CONTEXT | changes))


def test_a_table_survives_its_file(tmp_path):
    table = pd.concat(
        [profile([0.1, 1 / 3, 0.2, 1e-12]), profile([0, 1, 0], quantity="early_exit_accuracy", sample_seed=None)],
        ignore_index=True,
    )
    path = tmp_path / "a.csv"
    results.write(table, path, results.provenance({"steps": 3}, note="n"))
    back, origin = results.read(path)
    pd.testing.assert_frame_equal(back, table, rtol=1e-9)
    assert list(back.columns) == list(results.COLUMNS)
    assert origin["parameters"] == {"steps": 3}
    assert origin["rows"] == len(table)
    assert {"versions", "machine", "date", "commit", "sha256"} <= set(origin)


def test_variants_survive_their_file_and_are_left_out_where_there_are_none(tmp_path):
    plain, centred = profile([0.1, 0.3, 0.2]), profile([0.1, 0.2, 0.2], variant="centred")
    results.write(plain, tmp_path / "plain.csv", {})
    assert "variant" not in (tmp_path / "plain.csv").read_text()
    back, _ = results.read(tmp_path / "plain.csv")
    assert back["variant"].tolist() == [""] * 3
    pd.testing.assert_frame_equal(back, plain)
    both = pd.concat([plain, centred], ignore_index=True)
    results.write(both, tmp_path / "both.csv", {})
    assert (tmp_path / "both.csv").read_text().splitlines()[0].endswith("quantity,variant,value")
    pd.testing.assert_frame_equal(results.read(tmp_path / "both.csv")[0], both)
    with pytest.raises(InputError, match="3 stored ones are missing and 0 are new"):
        results.compare(plain, both, 0.0)


def test_a_table_that_does_not_match_its_provenance_is_refused(tmp_path):
    path = tmp_path / "a.csv"
    results.write(profile([0.1, 0.3, 0.2]), path, {})
    path.write_text(path.read_text().replace("0.3", "0.4"))
    with pytest.raises(StorageError, match=r"a\.csv does not match its provenance: its SHA-256 is"):
        results.read(path)
    path.with_suffix(".json").unlink()
    with pytest.raises(StorageError, match="cannot be read"):
        results.read(path)


def test_measurements_need_every_column_and_as_many_values_as_sites():
    with pytest.raises(InputError, match="3 values of q for 2 sites"):
        results.measurements([1, 2, 3], results.sites(1, final_norm=False), "q", **CONTEXT)
    with pytest.raises(InputError, match="column 'n'"):
        results.measurements([1, 2], results.sites(1, False), "q", **{k: v for k, v in CONTEXT.items() if k != "n"})
    assert results.sites(2) == [(0, "embedding"), (1, "block"), (2, "block"), (2, "final_norm")]


def test_comparison_finds_the_one_value_that_is_off_whatever_the_order():
    stored = pd.concat([profile([0.1, 0.2, 0.3, 0.4], sample_seed=s) for s in (0, 1)], ignore_index=True)
    shuffled = stored.sample(frac=1, random_state=0)
    results.compare(shuffled, stored, 1e-12).require()
    off = stored.copy()
    off.loc[5, "value"] += 0.01
    with pytest.raises(AssertionError, match="1 of 8 measurements differ"):
        results.compare(off, stored, 0.009).require()
    results.compare(off, stored, 0.011).require()
    tolerance = pd.Series(1e-9, index=stored.index)
    tolerance[5] = 0.02
    results.compare(off, stored, tolerance).require()
    off.loc[2, "value"] = np.nan
    with pytest.raises(AssertionError):
        results.compare(off, stored, 1.0).require()


def test_tables_of_different_measurements_are_not_compared():
    stored = profile([0.1, 0.2, 0.3, 0.4])
    with pytest.raises(InputError, match="1 stored ones are missing and 0 are new"):
        results.compare(stored.iloc[:-1], stored, 1.0)
    with pytest.raises(InputError, match="4 stored ones are missing and 4 are new"):
        results.compare(stored.assign(n=11), stored, 1.0)
    with pytest.raises(InputError, match="holds a measurement twice"):
        results.compare(pd.concat([stored, stored]), stored, 1.0)


def test_subsamples_are_without_replacement_and_seeded():
    for n in (2, 7, 10):
        index = statistics.subsample(10, n, seed=3)
        assert len(set(index.tolist())) == n
        assert set(index.tolist()) <= set(range(10))
    assert statistics.subsample(100, 50, 1).tolist() == statistics.subsample(100, 50, 1).tolist()
    assert statistics.subsample(100, 50, 1).tolist() != statistics.subsample(100, 50, 2).tolist()


@pytest.mark.parametrize("seeds", [[], [1, 1]])
def test_sampling_seeds_out_of_range(seeds):
    with pytest.raises(InputError, match="sampling_seeds must be one or more different integers"):
        statistics.check_sampling(10, 5, seeds)


@pytest.mark.parametrize("n", [1, 0, -3, 11])
def test_subsample_sizes_out_of_range(n):
    with pytest.raises(InputError, match=f"n_samples must be between 2 and the number of examples, 10, but is {n}"):
        statistics.subsample(10, n, 0)


def test_band_is_two_sample_standard_deviations():
    values = [0.1, 0.4, 0.2, 0.7, 0.3]
    table = pd.concat([profile([0, v, 0], sample_seed=i) for i, v in enumerate(values)])
    row = statistics.band(table, ["site", "layer"]).set_index("site").loc["block"]
    assert row["mean"] == pytest.approx(np.mean(values))
    assert row["half_width"] == pytest.approx(2 * np.std(values, ddof=1))
    alone = statistics.band(profile([0, 0.5, 0]), ["layer", "site"])
    assert (alone["half_width"] == 0).all()


def test_ridge_summary_finds_a_planted_ridge_and_its_fall():
    seeds = range(5)
    ridged = [profile([0, 0.2, 0.5 + 0.01 * s, 0.3 + 0.01 * s, 0.1], sample_seed=s) for s in seeds]
    rising = [profile([0, 0.1, 0.2, 0.4, 0.9], sample_seed=s, step=7) for s in seeds]
    summary = statistics.ridge_summary(pd.concat(ridged + rising)).set_index("step")
    assert summary.loc[0, "ridge_layer"] == 2
    assert summary.loc[0, "to_last_block"] == pytest.approx(0.2)
    assert summary.loc[0, "to_last_block_half_width"] == pytest.approx(0, abs=1e-12)
    assert summary.loc[0, "to_final_norm"] == pytest.approx(0.42)
    assert summary.loc[0, "to_last_block_beyond_band"]
    assert summary.loc[7, "ridge_layer"] == 3, "the state after the final norm is never the ridge"
    assert summary.loc[7, "to_last_block"] == 0


def test_the_headline_says_what_was_planted():
    def seeds(values, **changes):
        return [profile([v + 0.001 * s for v in values], split="all", sample_seed=s, **changes) for s in range(3)]

    ridged, rising = seeds([0, 0.2, 0.52, 0.3, 0.1]), seeds([0, 0.1, 0.2, 0.4, 0.3], step=7)
    text = statistics.headline(statistics.ridge_summary(pd.concat(ridged + rising)), "m")
    assert "In m, predictive information depends on how far the model is trained: untouched" in text
    assert "depends" not in statistics.headline(statistics.ridge_summary(pd.concat(ridged)), "m")
    assert "untouched, it peaks at layer 2 of 3 (0.521 nats) and falls to 0.301 at the last block" in text
    assert "after 7 fine-tuning steps, it rises to the last block (0.401 nats): no ridge" in text
    assert "At every checkpoint it is lower after the final norm" in text
    higher = seeds([0, 0.1, 0.2, 0.4, 0.5], step=7)
    assert "At every" not in statistics.headline(statistics.ridge_summary(pd.concat(ridged + higher)), "m")


def test_a_fall_within_the_band_is_said_to_be_no_more():
    falls = (0.3, -0.3, 0.2, -0.1)
    noisy = [profile([0, 0.5 + f, 0.5, 0.2], sample_seed=s) for s, f in enumerate(falls)]
    summary = statistics.ridge_summary(pd.concat(noisy))
    assert summary.loc[0, "ridge_layer"] == 1
    assert not summary.loc[0, "to_last_block_beyond_band"]
    together = statistics.ridge_summary(pd.concat(noisy).assign(split="all"))
    assert "then falls by no more than the band" in statistics.headline(together, "m")


def test_depth_table_and_the_papers_rows_beside_it():
    table = pd.concat(
        [profile(list(range(26)), split="all", sample_seed=s) for s in (0, 1)]
        + [
            profile([x / 100] * 25, split=s, quantity="early_exit_accuracy", sample_seed=None)
            for s, x in (("all", 1), ("id", 2), ("ood", 3))
        ]
    )
    ours = statistics.depth_table(table, 0)
    assert ours["layer"].tolist() == list(range(25))
    assert ours["predictive_information"].tolist() == list(range(25))
    assert ours[["accuracy_all", "accuracy_id", "accuracy_ood"]].iloc[0].tolist() == [0.01, 0.02, 0.03]
    theirs = paper.table_1().assign(depth=lambda t: t["layer"] / paper.TABLE_1_BLOCKS)
    beside = statistics.beside(ours, theirs).set_index("layer")
    assert len(beside) == 25
    assert beside.loc[20, "paper_layer"] == 10
    assert beside.loc[20, "paper_predictive_information"] == 0.2721
    assert beside.loc[24, "paper_accuracy_id"] == 0.9317
    assert beside["paper_layer"].notna().sum() == 8


def test_the_papers_table_is_the_papers():
    table = paper.table_1().set_index("layer")
    information = {1: 0.0002, 6: 0.0185, 7: 0.0416, 8: 0.1883, 9: 0.2301, 10: 0.2721, 11: 0.2475, 12: 0.0188}
    assert table["predictive_information"].to_dict() == information
    assert table.loc[10:, "accuracy_all"].tolist() == [0.5515, 0.6592, 0.7158]
    assert table.loc[10:, "accuracy_id"].tolist() == [0.5340, 0.7917, 0.9317]
    assert table.loc[10:, "accuracy_ood"].tolist() == [0.5690, 0.5267, 0.5000]
    assert table.loc[[1, 6], ["accuracy_all", "accuracy_id", "accuracy_ood"]].eq(0).all().all()
    assert table.loc[7:9, "accuracy_all"].isna().all()
    # Where all three are known, the accuracy over all is the mean of ID and OOD, half of the examples each.
    known = table.dropna()
    means = (known["accuracy_id"] + known["accuracy_ood"]) / 2
    assert (known["accuracy_all"] - means).abs().max() < 1e-4


def test_every_stored_table_matches_its_provenance():
    paths = sorted(results.FOLDER.rglob("*.csv"))
    assert paths
    for path in paths:
        _, origin = results.read(path)
        assert {"parameters", "versions", "machine", "date", "commit", "rows"} <= set(origin), path
        assert "local changes" not in str(origin["commit"]), f"{path} was not made by committed code"
        assert origin["parameters"].get("data_dir", "") in ("", "given"), f"{path} says where a data folder lies"
    assert {p.with_suffix(".json") for p in paths} == set(results.FOLDER.rglob("*.json"))


def test_references_are_found_by_notebook_under_the_names_of_their_profiles(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    assert results.references("attention") == {}
    for name, value in (("b-profile", 0.2), ("a-profile", 0.1)):
        folder = tmp_path / "reference" / name
        results.write(profile([0, value, 0]), folder / "attention.csv", {"parameters": {"name": name}})
        results.write(profile([0, 9, 0]), folder / "truncation.csv", {})
    results.write(profile([0, 9, 0]), tmp_path / "attention.csv", {})
    found = results.references("attention")
    assert list(found) == ["a-profile", "b-profile"]
    assert [table["value"].max() for table, _ in found.values()] == [0.1, 0.2]
    assert found["b-profile"][1]["parameters"] == {"name": "b-profile"}
    (tmp_path / "reference" / "a-profile" / "attention.csv").write_text("edited")
    with pytest.raises(StorageError, match="does not match its provenance"):
        results.references("attention")


def test_the_same_parameters_are_the_same_wherever_the_data_lie(tmp_path):
    parameters = {"steps": 3, "learning_rate": 5e-5, "training_seeds": [0, 1], "data_dir": "/home/somebody/data"}
    results.write(profile([0, 1, 0]), tmp_path / "a.csv", results.provenance(parameters))
    assert "somebody" not in (tmp_path / "a.json").read_text()
    origin = results.read(tmp_path / "a.csv")[1]
    assert origin["parameters"]["data_dir"] == "given"
    assert results.same_parameters(parameters, origin)
    assert results.same_parameters(parameters | {"data_dir": "/elsewhere", "training_seeds": (0, 1)}, origin)
    assert not results.same_parameters(parameters | {"data_dir": ""}, origin), "the set made for this project"
    for other in ({"steps": 4}, {"training_seeds": [1, 0]}, {"learning_rate": 1e-5}, {"more": 1}):
        assert not results.same_parameters(parameters | other, origin), other
    assert not results.same_parameters({"steps": 3}, origin)
