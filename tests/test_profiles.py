"""Profiles: read and checked, their parameters for a notebook, and `ridge run --profile` and `ridge reference`."""

import nbformat
import papermill
import pytest
import yaml

from ridge_utils import notebooks, profiles, results
from ridge_utils.errors import InputError
from ridge_utils.profiles import Profile
from ridge_utils.run import cli

COMMITTED = sorted(profiles.FOLDER.glob("*.yaml"))
ATTENTION, INFORMATION = "attention", "predictive_information"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of profiles, with results and runs beside it."""
    # A kernel knows nothing of this folder, and so writes no place in it.
    monkeypatch.setattr(results, "_place", lambda _path: "")
    (tmp_path / "profiles").mkdir()
    monkeypatch.setattr(profiles, "FOLDER", tmp_path / "profiles")
    monkeypatch.setattr(results, "FOLDER", tmp_path / "results")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RIDGE_DATA", raising=False)
    return tmp_path


@pytest.fixture
def write(folder):
    def write(name, **content):
        path = folder / "profiles" / f"{name}.yaml"
        path.write_text(yaml.safe_dump({"title": name, **content}, sort_keys=False))
        return path

    return write


# Reading.


def test_a_profile_is_read_by_name_or_by_path(write, folder):
    content = {
        "title": "A title",
        "reference": True,
        "real_data": True,
        "parameters": {"steps": 3},
        "notebooks": {ATTENTION: {"n_samples": 9}, INFORMATION: None},
        "expected": {"time": "1 hour"},
    }
    path = write("mine", **content)
    wanted = Profile(
        "mine", "A title", {ATTENTION: {"n_samples": 9}, INFORMATION: {}}, {"steps": 3}, True, True, {"time": "1 hour"}
    )
    assert profiles.load("mine") == profiles.load("mine.yaml") == profiles.load(str(path)) == wanted
    elsewhere = folder / "other.yaml"
    path.rename(elsewhere)
    assert profiles.load("other.yaml").name == "other", "a file's path comes first"
    with pytest.raises(InputError, match="no profile 'mine'"):
        profiles.load("mine")


# Their parameters for a notebook.


def test_shared_parameters_reach_the_notebooks_that_declare_them_and_own_ones_come_first(write):
    write(
        "mine",
        parameters={"steps": 3, "n_samples": 8, "kernel": "laplacian", "learning_rate": 1},
        notebooks={ATTENTION: {"n_samples": 9, "shown": [1]}, INFORMATION: {}},
    )
    profile = profiles.load("mine")
    attention = notebooks.profile_values(ATTENTION, profile)
    assert attention == {"steps": 3, "n_samples": 9, "learning_rate": 1.0, "shown": [1]}
    assert type(attention["learning_rate"]) is float
    information = notebooks.profile_values(INFORMATION, profile)
    assert information == {"steps": 3, "n_samples": 8, "kernel": "laplacian", "learning_rate": 1.0}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"notebooks": {INFORMATION: {}}}, "'mine' does not run 'attention'"),
        ({"notebooks": {ATTENTION: {"kernel": "gaussian"}}}, "no parameter 'kernel'"),
        ({"notebooks": {ATTENTION: {}}, "parameters": {"kernel": "gaussian"}}, "'kernel', which none"),
        ({"notebooks": {ATTENTION: {}}, "parameters": {"steps": 1.5}}, "'steps' must be of type int"),
        ({"notebooks": {ATTENTION: {"training_seeds": [0, "a"]}}}, r"must be of type list\[int\]"),
        ({"notebooks": {ATTENTION: {}, "nothing": {}}}, "'nothing'"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(write, content, words, capsys):
    write("mine", **content)
    with pytest.raises(InputError, match=words):
        notebooks.profile_values(ATTENTION, profiles.load("mine"))
    assert cli.main(["run", ATTENTION, "--profile", "mine"]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_the_committed_profiles_fit_their_notebooks(path):
    profile = profiles.load(str(path))
    for notebook in profile.notebooks:
        values = notebooks.profile_values(notebook, profile)
        steps = values.get("steps", 0)
        assert all(0 <= step <= steps for step in values.get("checkpoints", [])), notebook
        assert "data_dir" not in values, "where the data lie is for the reader to say"
    assert profile.expected


@pytest.mark.parametrize("notebook", notebooks.names())
def test_defaults_are_what_the_parameters_cell_sets(notebook):
    cells = nbformat.read(notebooks.NOTEBOOKS / f"{notebook}.ipynb", as_version=4).cells
    (cell,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    values = {}
    exec(cell.source, {}, values)
    values.pop("__annotations__", None)
    for name in ("compare", "save_table"):
        values.pop(name, None)
    assert notebooks.defaults(notebook) == values
    changed = values | {"model": "another", "more": 1, "compare": True}
    declared = notebooks.declared(notebook, changed)
    assert list(declared) == list(values)
    assert declared.get("model") == ("another" if "model" in values else None)


# ridge run --profile


@pytest.fixture
def runs(monkeypatch):
    """In place of executing a notebook, note what it was given and store a table as it would."""
    seen = []

    def run(notebook, values, output, quiet=False, force=False, finish=None):
        seen.append((notebook, dict(values), output))
        if "save_table" in values:
            measured = {name: v for name, v in values.items() if name not in ("compare", "save_table")}
            context = {"model": "m", "task": "t", "source": "own", "split": "id", "step": 0, "train_seed": None}
            table = results.measurements([1.0], [(0, "embedding")], "q", **context, sample_seed=0, n=2)
            origin = results.provenance({**notebooks.defaults(notebook), **measured})
            results.write(table, cli.Path(values["save_table"]), origin)
        return 0.0

    monkeypatch.setattr(notebooks, "run", run)
    return seen


def test_run_takes_a_profile_and_what_the_command_line_changes(write, runs):
    path = write("mine", parameters={"steps": 3, "n_samples": 8}, notebooks={ATTENTION: {"batch_size": 2}})
    assert cli.main(["run", ATTENTION, "--profile", "mine"]) == 0
    changes = ["-p", "steps=5", "-p", "dtype=float64", "-o", "x.ipynb"]
    assert cli.main(["run", ATTENTION, "--profile", str(path), *changes]) == 0
    assert [values for _, values, _ in runs] == [
        {"steps": 3, "n_samples": 8, "batch_size": 2},
        {"steps": 5, "n_samples": 8, "batch_size": 2, "dtype": "float64"},
    ]
    assert runs[0][2].parent.name == "runs"
    assert runs[1][2].name == "x.ipynb"
    assert cli.main(["run", ATTENTION]) == 0
    assert runs[2][1] == {}


# ridge reference


def listed(capsys):
    """The lines that say what is done and what is left."""
    return [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]


def test_reference_runs_what_is_missing_and_skips_what_is_done(write, runs, folder, capsys):
    write("b", reference=True, parameters={"steps": 3}, notebooks={ATTENTION: {"n_samples": 9}, INFORMATION: {}})
    write("a", reference=True, notebooks={ATTENTION: {}})
    write("no", notebooks={ATTENTION: {}})
    assert cli.main(["reference", "--list"]) == 0
    left = ["left a/attention", "left b/attention", "left b/predictive_information"]
    assert listed(capsys) == [*left, "0 of 3 reference runs are done."]
    assert runs == []
    assert cli.main(["reference"]) == 0
    stored = folder / "results" / "reference"
    assert [(notebook, values) for notebook, values, _ in runs] == [
        (ATTENTION, {"compare": False, "save_table": str(stored / "a" / "attention.csv")}),
        (ATTENTION, {"steps": 3, "n_samples": 9, "compare": False, "save_table": str(stored / "b" / "attention.csv")}),
        (INFORMATION, {"steps": 3, "compare": False, "save_table": str(stored / "b" / f"{INFORMATION}.csv")}),
    ]
    assert len({output for _, _, output in runs}) == 3
    assert set(results.references(ATTENTION)) == {"a", "b"}
    capsys.readouterr()
    assert cli.main(["reference"]) == 0
    assert listed(capsys)[-1] == "3 of 3 reference runs are done."
    assert len(runs) == 3

    (stored / "b" / "attention.csv").unlink()
    write("a", reference=True, notebooks={ATTENTION: {"steps": 4}})
    assert cli.main(["reference", "--list"]) == 0
    assert listed(capsys)[:3] == ["left a/attention", "left b/attention", "done b/predictive_information"]
    assert cli.main(["reference", "b"]) == 0
    assert [output.parent.name for _, _, output in runs[3:]] == ["b"], "the named profile only"
    assert cli.main(["reference"]) == 0
    assert [(output.parent.name, values["steps"]) for _, values, output in runs[4:]] == [("a", 4)]


def test_a_run_that_fails_is_reported_and_the_others_go_on(write, runs, monkeypatch, capsys):
    write("a", reference=True, notebooks={ATTENTION: {}, INFORMATION: {}})
    whole = notebooks.run

    def run(notebook, values, output, quiet=False, force=False, finish=None):
        if notebook == ATTENTION:
            raise papermill.PapermillExecutionError(3, 4, "1 / 0", "ZeroDivisionError", "division by zero", [])
        return whole(notebook, values, output)

    monkeypatch.setattr(notebooks, "run", run)
    assert cli.main(["reference"]) == 1
    said = capsys.readouterr().err
    assert "cell 4: ZeroDivisionError" in said
    assert "1 of 2 runs failed: a/attention" in said
    assert [notebook for notebook, _, _ in runs] == [INFORMATION]
    assert cli.main(["reference", "--list"]) == 0
    assert listed(capsys)[:2] == ["left a/attention", "done a/predictive_information"]


def test_a_profile_that_is_no_reference_does_not_write_into_the_results(write, runs, capsys):
    write("mine", notebooks={ATTENTION: {}})
    assert cli.main(["reference", "mine"]) == 2
    assert "'mine' is not a reference profile" in capsys.readouterr().err
    assert runs == []


def test_real_data_come_from_the_folder_that_is_given(write, runs, folder, monkeypatch, capsys):
    write("real", reference=True, real_data=True, parameters={"task": "clutrr"}, notebooks={ATTENTION: {}})
    assert cli.main(["reference"]) == 2
    assert "--data-dir" in capsys.readouterr().err
    assert runs == []
    monkeypatch.setenv("RIDGE_DATA", "/no/such/folder")
    assert cli.main(["reference", "--data-dir", "profiles"]) == 0
    assert runs[0][1]["data_dir"] == str(folder / "profiles"), "absolute, because the notebook runs in its own folder"
    monkeypatch.setenv("RIDGE_DATA", "elsewhere")
    assert cli.main(["reference"]) == 0
    assert len(runs) == 1, "what is done is done, wherever the data lie"
    (folder / "results" / "reference" / "real" / "attention.csv").unlink()
    assert cli.main(["reference"]) == 0
    assert runs[1][1]["data_dir"] == str(folder / "elsewhere")
