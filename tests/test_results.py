import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from ridge_utils import cache, files, results
from ridge_utils.errors import InputError, StorageError
from tests.tables import CONTEXT, profile


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


def test_no_flipped_byte_of_a_table_or_its_provenance_is_accepted(tmp_path):
    rng, smallest = random.Random(0), sorted(results.FOLDER.rglob("*.csv"), key=lambda path: path.stat().st_size)[:20]
    for number in range(400):
        stored = rng.choice(smallest)
        for file in (stored, stored.with_suffix(".json")):
            shutil.copy(file, tmp_path / f"a{file.suffix}")
        damaged = tmp_path / f"a{'.csv' if number % 4 == 0 else '.json'}"
        content = bytearray(damaged.read_bytes())
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        damaged.write_bytes(content)
        with pytest.raises(StorageError, match="cannot be read"):
            results.read(tmp_path / "a.csv")


def test_two_stored_tables_that_were_swapped_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    for name in ("a", "b"):
        results.write(profile([0.1, 0.3, 0.2]), tmp_path / name / "x.csv", {"parameters": {"name": name}})
    (tmp_path / "a").rename(tmp_path / "c")
    (tmp_path / "b").rename(tmp_path / "a")
    with pytest.raises(StorageError, match=r"another's, b/x\.csv"):
        results.read(tmp_path / "a" / "x.csv")
    shutil.copytree(tmp_path / "a", elsewhere := tmp_path.with_name("elsewhere"))
    results.read(elsewhere / "x.csv")


def seal(folder, text, **origin):
    """A table with a provenance whose digests are right, whatever they are of."""
    (folder / "a.csv").write_text(text)
    origin = {"rows": 1, "sha256": cache.sha256(folder / "a.csv"), **origin}
    digest = results._own_digest(origin)
    (folder / "a.json").write_text(json.dumps({**origin, "sha256_of_this": digest}))


HEADER = ",".join(results.COLUMNS)


@pytest.mark.parametrize("name", ["a.csv", "a.json"])
@pytest.mark.parametrize(
    "content",
    [
        *(None, Path.mkdir, os.mkfifo, "", "[]", "null", "3", "{}", "[" * 5000, '{"a": NaN}', '{"a": 1e999}'),
        *('{"rows": 1, "rows": 1}', "\0" * 9, "\udcff", "1" * 5000),
    ],
    ids=lambda content: str(content)[:12],
)
def test_what_is_no_table_of_ours_is_one_sentence(name, content, tmp_path):
    results.write(profile([0.1, 0.3, 0.2]), tmp_path / "a.csv", {})
    (tmp_path / name).unlink()
    if callable(content):
        content(tmp_path / name)
    elif content is not None:
        (tmp_path / name).write_text(content, errors="surrogateescape")
    with pytest.raises(StorageError, match=r"^[^\n]{20,600}\.$"):
        results.read(tmp_path / "a.csv")


@pytest.mark.parametrize(
    "text",
    [
        *(f"{HEADER}\nm,t,own,id,{step},,,9,,0,block,q,,{value}\n" for step, value in (("a", 1), (0, "a"), (1e30, 1))),
        *("", "a,b\n1,2\n3,4\n", "a\n1,2\n3,4,5,6\n"),
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_a_table_of_other_types_or_rows_is_refused_though_its_digests_are_right(text, tmp_path):
    seal(tmp_path, text)
    with pytest.raises(StorageError, match="cannot be read"):
        results.read(tmp_path / "a.csv")


def test_only_a_table_of_ours_is_written_over_and_never_through_a_link(tmp_path):
    path, table = tmp_path / "a.csv", profile([0.1, 0.3, 0.2])
    results.write(table, path, {})
    results.write(table, path, {})  # over its own
    path.write_text("damaged")
    results.write(table, path, {})
    path.with_suffix(".json").write_text("damaged")
    results.write(table, path, {})
    for name in ("a.json", "a.txt", "a", "a.csv.gz"):
        with pytest.raises(InputError, match=r"must end in \.csv"):
            files.claim(tmp_path / name, ".csv", force=True)
    mine = {"b.csv": "my,own\n1,2\n", "c.json": '{"package": 1}', "d.csv": "sha256\n1\n"}
    for name, text in mine.items():
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=f"{name} was not written by a run"):
            results.write(table, (tmp_path / name).with_suffix(".csv"), {})
        assert (tmp_path / name).read_text() == text
        files.claim((tmp_path / name).with_suffix(".csv"), ".csv", force=True)
        assert not (tmp_path / name).exists()
        assert (tmp_path / f"{name}~").read_text() == text
    (tmp_path / "link.csv").symlink_to(path)
    (tmp_path / "dangling.csv").symlink_to(tmp_path / "new.csv")
    (tmp_path / "beside.json").symlink_to(path.with_suffix(".json"))
    (tmp_path / "folder.csv").mkdir()
    os.mkfifo(tmp_path / "pipe.csv")
    for name in ("link", "dangling", "beside", "folder", "pipe"):
        for force in (False, True):
            with pytest.raises(InputError, match="a link, a folder or a device"):
                files.claim(tmp_path / f"{name}.csv", ".csv", force)
    for name in ("x" * 300 + ".csv", "nul\0.csv", "a.csv/below.csv"):
        with pytest.raises((InputError, StorageError)):
            files.claim(tmp_path / name, ".csv")


def test_measurements_need_every_column_and_as_many_values_as_sites():
    with pytest.raises(ValueError, match="same length"):
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
