"""The committed notebooks: executed, compared, honest about their parameters, and running on other models and tasks."""

import functools
import os
import re
import shutil
import subprocess
import sys

import matplotlib.pyplot as plt
import nbformat
import pytest
import yaml

from ridge_utils import notebooks, profiles, results, tolerances
from ridge_utils.audit import decodability
from ridge_utils.errors import InputError
from ridge_utils.run import cli, sweep

NAME = "predictive_information"
plt.switch_backend("Agg")

PATHS = sorted(notebooks.NOTEBOOKS.glob("*.ipynb"))


@pytest.fixture(params=PATHS, ids=lambda path: path.stem)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook, tag):
    return [cell for cell in code(notebook) if tag in cell.metadata.get("tags", [])]


def test_every_cell_was_executed_in_order_and_without_an_error(notebook):
    assert [cell.execution_count for cell in code(notebook)] == list(range(1, len(code(notebook)) + 1))
    assert not [o for cell in code(notebook) for o in cell.outputs if o.output_type == "error"]


def test_at_least_one_cell_is_compared_and_has_something_to_compare(notebook):
    compared = tagged(notebook, "nbval-check-output")
    assert compared
    assert all(cell.outputs for cell in compared)


def test_parameters_are_literals_with_type_and_help(notebook):
    (cell,) = tagged(notebook, "parameters")
    for line in cell.source.splitlines():
        assert re.fullmatch(r"[a-z_]+: (int|float|str|bool|list\[int\]|list\[str\]|dict) = .+  # .+", line), line


def test_nothing_is_stored_that_differs_from_run_to_run(notebook):
    text = nbformat.writes(notebook)
    assert '"papermill"' not in text
    assert '"iopub' not in text
    assert '"stderr"' not in text
    assert nbformat.writes(notebooks.stable(nbformat.reads(text, as_version=4))) == text


def test_figures_are_named_captioned_and_described(notebook):
    for cell in code(notebook):
        tags, shown = cell.metadata.get("tags", []), cell.metadata.get("mystnb", {})
        images = sum("image/png" in o.get("data", {}) for o in cell.outputs)
        assert images <= 1 or "figure" not in shown, "two would carry the same name, and the book could not be built"
        if images and notebooks.OWN_RUN not in tags:
            assert len(shown["image"]["alt"]) > 40
            if "hide-cell" not in tags:
                assert shown["figure"]["name"].startswith("fig-")
                assert len(shown["figure"]["caption"]) > 100


MEASURING = [path.stem for path in PATHS if "compare" in notebooks.parameters(path.stem)]


@pytest.mark.parametrize("name", MEASURING)
def test_the_stored_table_was_made_with_the_committed_parameters(name):
    table, origin = results.read(results.FOLDER / f"{name}.csv")
    assert origin["parameters"] == notebooks.defaults(name)
    assert list(table.columns) == list(results.COLUMNS)
    assert len(table) == origin["rows"]
    assert tolerances.check(table, name, notebooks.defaults(name)).startswith("compared with")


def compares_trained(name):
    return "trained=False" not in (notebooks.NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", filter(compares_trained, MEASURING))
def test_what_is_trained_has_measured_tolerances(name):
    table, _ = results.read(results.FOLDER / f"{name}.csv")
    effects = tuple(tolerances.DIFFERENCE_OF)
    trained = table[(table["step"] > 0) & ~table["quantity"].str.startswith(effects)]
    differences = tolerances.differences_of(name)
    assert (differences is None) == trained.empty
    if differences is not None:
        key = [column for column in tolerances.KEY if column in differences]
        assert trained[key].merge(differences[key].drop_duplicates(), on=key).shape[0] == len(trained)


def test_every_reference_profile_was_run_with_its_own_parameters():
    for profile in profiles.references():
        for notebook in profile.notebooks:
            table, origin = results.read(results.FOLDER / "reference" / profile.name / f"{notebook}.csv")
            given = {**notebooks.defaults(notebook), **notebooks.profile_values(notebook, profile)}
            if profile.real_data:
                given["data_dir"] = "given"
                assert set(table["source"]) == {"local"}
            assert results.same_parameters(given, origin), (profile.name, notebook)


def test_nothing_in_results_names_a_folder_of_somebodys_machine():
    for path in results.FOLDER.rglob("*.json"):
        assert not re.search(r'"(/|~|[A-Z]:\\)[^"]*"', path.read_text(encoding="utf-8")), path


# Every notebook on a small model of each of the paper's architectures, and every task's offline set.

FEW = ["n_train=16", "steps=2", "checkpoints=[0, 2]"]
SMALL = {
    "predictive_information": ["model=random:gpt2", "task=ecqa", *FEW, "n_samples=16"],
    "incremental_information": ["model=random:llama", "task=clutrr", *FEW, "n_samples=16"],
    "truncation": ["model=random:qwen2", "task=clutrr", *FEW, "n_samples=16", "depths=[2, 5]"],
    "overfitting": ["model=random:llama", "task=ecqa", *FEW, "n_samples=16"],
    "residual_scaling": [
        "model=random:qwen2",
        "task=clutrr",
        *FEW,
        "n_fits=2",
        "n_examples=8",
        "fit_steps=2",
    ],
    "attention": ["model=random:llama", "task=clutrr", *FEW, "n_samples=16"],
    "multi_token": ["model=random:gpt2", "decoding_steps=4", "measured_steps=[1, 4]", "n_samples=20"],
    "estimator_audit": [
        *["model=random:qwen2", "task=clutrr", *FEW, "n_samples=16", "n_examples=24"],
    ],
    "decodability": ["model=random:llama-3x16", "task=clutrr", *FEW, "n_examples=30", "spacing=5", "n_known=60"],
    "early_exit": ["model=random:gpt2", "task=clutrr", *FEW, "n_examples=30"],
    "interventions": [
        *["model=random:qwen2", "task=clutrr", *FEW, "n_samples=8", "n_examples=24"],
        *["memorise_steps=2", "n_memorise=8"],
    ],
    "anatomy": ["model=random:qwen2", "task=clutrr", *FEW, "n_examples=40", "n_shuffles=2"],
    "audit": [
        *["model=random:gpt2-3x16", "task=clutrr", *FEW, "n_examples=40", "n_intervened=8"],
        "n_fits=2",
    ],
}


def execute(name, assignments, table, monkeypatch):
    """Run a notebook's code in this process, as `ridge run` does with other parameters; its variables."""
    values = notebooks.parse(name, assignments) | {"save_table": str(table)}
    monkeypatch.chdir(notebooks.NOTEBOOKS)
    monkeypatch.setattr("IPython.display.display", lambda shown: getattr(shown, "_repr_html_", lambda: shown)())
    monkeypatch.setattr(plt, "show", lambda: (plt.gcf().canvas.draw(), plt.close("all")))
    namespace = {"__name__": "__main__"}
    for number, cell in enumerate(notebooks.cells(name)):
        if cell["cell_type"] == "code" and not notebooks.has_tag(cell, notebooks.DEFAULT_RUN):
            exec(compile(cell["source"], f"{name}, cell {number}", "exec"), namespace)
            if notebooks.has_tag(cell, "parameters"):
                namespace.update(values)
    plt.close("all")
    return namespace


@pytest.mark.parametrize("name", ["mine.ipynb", "mine.csv", "mine.json", "mine.html"])
def test_a_run_replaces_nothing_that_no_run_wrote(name, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(notebooks, "execute", lambda _source, output, *_: output.write_text('{"cells": []}'))
    monkeypatch.setattr("ridge_utils.run.plain.finish", lambda *_: None)
    monkeypatch.setattr("ridge_utils.run.plain.html", lambda *_: "")
    (tmp_path / name).write_text('{"cells": [], "metadata": {}}')
    command = ["run", NAME, "-p", "n_samples=9", "--html", "-o", str(tmp_path / "mine.ipynb")]
    assert cli.main(command) == 2
    assert f"{name} was not written by a run" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == '{"cells": [], "metadata": {}}'
    assert cli.main([*command, "--force"]) == 0
    assert (tmp_path / f"{name}~").read_text() == '{"cells": [], "metadata": {}}'


@pytest.mark.parametrize("target", ["~.txt", "a.json", "link.csv", "../notebooks/a", str(results.FOLDER / "new.csv")])
def test_a_table_that_could_not_be_written_is_refused_before_it_is_measured(target, tmp_path, monkeypatch):
    monkeypatch.setattr(notebooks, "execute", None)  # calling it would raise
    (tmp_path / "link.csv").symlink_to(tmp_path / "target.csv")
    with pytest.raises(InputError):
        notebooks.run(NAME, {"save_table": str(tmp_path / target)}, tmp_path / "a.ipynb")
    assert not (tmp_path / "target.csv").exists()


def test_a_file_of_parameters_says_not_where_anything_is_written(tmp_path):
    values = {"save_table": "a.csv"}
    (tmp_path / "p.yaml").write_text(yaml.safe_dump({"title": "t", "notebooks": {"audit": values}}))
    with pytest.raises(InputError, match="may not set 'save_table'"):
        notebooks.profile_values("audit", profiles.load(str(tmp_path / "p.yaml")))
    grid = {"notebooks": {"audit": {}}, "models": ["m"], "overrides": {"m": values}}
    (tmp_path / "g.yaml").write_text(yaml.safe_dump(grid))
    with pytest.raises(InputError, match="may not set 'save_table'"):
        sweep.load(tmp_path / "g.yaml", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_notebook_runs_on_another_model_and_task(name, tmp_path, monkeypatch):
    namespace = execute(name, SMALL[name], tmp_path / f"{name}.csv", monkeypatch)
    table, origin = results.read(tmp_path / f"{name}.csv")
    assert set(table["source"]) == {"synthetic"}
    assert table["value"].notna().all()
    assert set(table["step"]) <= {0, 2}
    assert "random:" in origin["model"]["name"]
    if name in MEASURING:
        assert "nothing to compare with" in tolerances.check(table, name, namespace["parameters"])


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_every_notebook_runs_on_one_to_four_blocks(name, tmp_path, monkeypatch):
    """A third of the blocks can be empty, the ridge can be in the last block, and nothing may lie between the ends."""
    # The same for every model, and slow.
    monkeypatch.setattr(decodability, "validation", functools.cache(decodability.validation))
    for blocks in range(1, 5):
        model = f"random:gpt2-{blocks}x16"
        few = [f"depths=[{blocks}]"] if name == "truncation" else []
        given = [text for text in SMALL[name] if not text.startswith("model")] + few
        given += [f"model={model}"]
        execute(name, given, tmp_path / f"{blocks}.csv", monkeypatch)
        assert results.read(tmp_path / f"{blocks}.csv")[0]["value"].notna().all()


@pytest.mark.slow
def test_nbval_passes_an_unchanged_page_and_fails_one_whose_fact_table_or_glued_number_no_longer_holds(tmp_path):
    text = (notebooks.NOTEBOOKS / "reproducibility.ipynb").read_text(encoding="utf-8")
    glued = re.search(r'plain": "(0\.\d+)"', text).group(1)
    shown = next(n for n in re.findall(r">(0\.\d\d)</td>", text) if text.count(f">{n}</td>") == 1)
    moved = f"{float(shown) + 0.05:.2f}"
    changes = {
        "unchanged": ("", ""),
        "fact": ("moves by at most one: yes", "moves by at most one: no"),
        "table": (f">{shown}</td>", f">{moved}</td>"),
        "glued": (glued, "0.5"),
    }
    for name, (old, new) in changes.items():
        assert old in text
        (tmp_path / f"{name}.ipynb").write_text(text.replace(old, new), encoding="utf-8")
    options = ["--nbval-lax", "--nbval-current-env", "-p", "no:cacheprovider", "-p", "check", "-n2"]
    command = [sys.executable, "-m", "pytest", "-q", "--dist", "loadfile", *options, "."]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert set(re.findall(r"FAILED (\w+)\.ipynb", done.stdout)) == {"fact", "table", "glued"}, done.stdout
    for line in ("- the ridge layer moves by at most one: yes", f"- {shown}", f"+ {moved}", f"- {glued}", "+ 0.5"):
        assert line in done.stdout, "both values are named"


@pytest.mark.slow
def test_a_stored_number_moved_past_its_tolerance_fails_the_check(tmp_path, monkeypatch):
    """The whole chain on a tiny model: measure, store, move one stored number, compare."""
    settings = ["model=random:gpt2", "steps=2", "checkpoints=[0, 2]", "n_samples=10", "n_train=8", "compare=false"]
    execute(NAME, settings, tmp_path / f"{NAME}.csv", monkeypatch)
    shutil.copytree(results.FOLDER / "differences", tmp_path / "differences")
    table, origin = results.read(tmp_path / f"{NAME}.csv")
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    results.write(table, tmp_path / f"{NAME}.csv", origin)
    assert "untouched model" in tolerances.check(table, NAME, origin["parameters"])
    moved = table.copy()
    moved.loc[3, "value"] += 0.0011
    results.write(moved, tmp_path / f"{NAME}.csv", origin)
    with pytest.raises(AssertionError, match="1 of "):
        tolerances.check(table, NAME, origin["parameters"])
