"""Sweeps: grids read and checked, runs on real worker processes, and what happens when one of them dies."""

import json
import os
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from ridge_utils import names, notebooks, profiles, results
from ridge_utils.errors import InputError
from ridge_utils.run import cli, sweep
from ridge_utils.run.sweep import Outcome

INFORMATION = "predictive_information"


def table(**more):
    context = {"model": "m", "task": "t", "source": "synthetic", "split": "id", "step": 0, "train_seed": None}
    return results.measurements(
        [1.0, 2.0], [(0, "embedding"), (1, "block")], "q", sample_seed=0, n=4, **{**context, **more}
    )


def finish(run, quiet=True):
    """Executes nothing, and leaves behind what a run leaves."""
    parameters = {**notebooks.defaults(run.notebook), **run.parameters}
    results.write(table(model=parameters.get("model", "m")), run.table, {"parameters": parameters})
    return Outcome(run, "done", 1.0)


def told(run, _quiet):
    """Tells which process it ran in."""
    return replace(finish(run), reason=str(os.getpid()))


def dies_once(run, quiet):
    """Its process is killed the first time."""
    mark = run.table.parent / "mark"
    if not mark.exists():
        mark.parent.mkdir(parents=True, exist_ok=True)
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return finish(run)


def dies_always(run, quiet):
    """Where its name says so, its process is killed each time."""
    if "bad" in run.name:
        os.kill(os.getpid(), signal.SIGKILL)
    return finish(run)


def missing_model(missing):
    """A Hub that has every model but one."""

    def answers(name):
        if name == missing:
            raise InputError(f"no {name}")
        return True

    return answers


@pytest.fixture
def grid(tmp_path):
    def write(**content):
        path = tmp_path / "grid.yaml"
        path.write_text(yaml.safe_dump(content, sort_keys=False))
        return sweep.load(path, tmp_path / "out")

    return write


@pytest.fixture
def runs(grid):
    return grid(notebooks={INFORMATION: {}}, models=["a", "b", "c"], parameters={"steps": 0}).runs


# Grids.


def test_a_grid_is_every_combination(grid):
    found = grid(
        title="both",
        notebooks={INFORMATION: {"n_samples": 30}, "multi_token": None},
        models=["gpt2", "Qwen/Qwen2.5-0.5B"],
        tasks=["clutrr"],
        seeds=[0, 1],
        parameters={"steps": 7, "checkpoints": []},
        resources={"GPU": 1},
    )
    assert (found.title, found.resources, len(found.runs)) == ("both", {"GPU": 1}, 6)
    first = found.runs[1]
    assert first.name == "predictive_information--gpt2--clutrr--seed-1"
    wanted = {"model": "gpt2", "task": "clutrr", "training_seeds": [1], "steps": 7, "checkpoints": [], "n_samples": 30}
    assert first.parameters == wanted
    assert found.runs[4].name == "multi_token--gpt2--clutrr", "it trains nothing, so it has no seeds"
    assert found.runs[4].parameters == {"model": "gpt2", "task": "clutrr"}
    assert len({run.table for run in found.runs}) == 6


def test_overrides_belong_to_the_runs_of_one_model_or_task(grid):
    found = grid(
        notebooks={INFORMATION: {"n_samples": 30}, "multi_token": {}},
        models=["gpt2", "big"],
        overrides={"big": {"n_samples": 40, "learning_rate": 1}},
    ).runs
    assert [run.parameters["n_samples"] for run in found[:2]] == [30, 40]
    assert found[1].parameters["learning_rate"] == 1.0
    assert found[3].parameters == {"model": "big", "n_samples": 40}, "multi_token has no learning rate"


@pytest.mark.parametrize("path", sorted((notebooks.NOTEBOOKS / "grids").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_committed_grids_fit_their_notebooks(path, tmp_path):
    assert len(sweep.load(path, tmp_path).runs) > 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"models": ["gpt2"]}, "'notebooks'"),
        ({"notebooks": {INFORMATION: {}}, "colour": 1}, "'colour'"),
        ({"notebooks": {INFORMATION: {}}, "seeds": [1, 1]}, "'seeds'"),
        ({"notebooks": {INFORMATION: {"stepz": 3}}}, "'stepz'"),
        ({"notebooks": {INFORMATION: {}}, "parameters": {"steps": "many"}}, "steps"),
        ({"notebooks": {"nothing": {}}}, "'nothing'"),
        ({"notebooks": {INFORMATION: {}}, "models": ["a"], "parameters": {"model": "b"}}, "'model'"),
        ({"notebooks": {INFORMATION: {}}, "models": ["a"], "overrides": {"b": {}}}, "'b'"),
        ({"notebooks": {INFORMATION: {}}, "models": ["a"], "overrides": {"a": {"stepz": 1}}}, "'stepz'"),
        ({"notebooks": {INFORMATION: {}}, "models": ["x/a", "y/a"]}, "would share the folder"),
    ],
)
def test_a_bad_grid_is_refused(grid, content, words):
    with pytest.raises(InputError, match=words):
        grid(**content)


# One run.


def test_what_is_done_is_known_by_its_table_and_parameters(runs):
    run = runs[0]
    assert not sweep.is_done(run)
    finish(run)
    assert sweep.is_done(run)
    assert not sweep.is_done(replace(run, parameters={**run.parameters, "n_samples": 9}))
    run.table.write_text("broken")
    assert not sweep.is_done(run)


def test_a_failed_run_leaves_its_traceback_and_a_later_success_removes_it(runs, monkeypatch):
    run = runs[0]
    monkeypatch.setattr(notebooks, "run", lambda *_, **__: 1 / 0)
    outcome = sweep.execute(run)
    assert (outcome.status, outcome.reason) == ("failed", "ZeroDivisionError: division by zero")
    assert "Traceback" in run.error.read_text()
    monkeypatch.setattr(notebooks, "run", lambda *_, **__: finish(run))
    assert sweep.execute(run).status == "done"
    assert not run.error.exists()
    monkeypatch.setattr(notebooks, "run", lambda *_, **__: 1 / 0)
    assert sweep.execute(run).status == "stored"


def test_two_sweeps_at_once_execute_a_run_once(runs, monkeypatch):
    calls = []

    def slow(*_, **__):
        calls.append(1)
        time.sleep(0.3)
        finish(runs[0])

    monkeypatch.setattr(notebooks, "run", slow)
    found = []
    threads = [threading.Thread(target=lambda: found.append(sweep.execute(runs[0]).status)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == ["done", "stored"]
    assert len(calls) == 1


# Many runs.


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_what_is_done_is_told_of_first_and_not_executed(runs, workers):
    finish(runs[1])
    outcomes = list(sweep.work(runs, workers=workers, call=told))
    assert [outcomes[0].run.name, outcomes[0].status] == [runs[1].name, "stored"]
    assert sorted(outcome.run.name for outcome in outcomes[1:]) == [runs[0].name, runs[2].name]
    elsewhere = {outcome.reason for outcome in outcomes[1:]} != {str(os.getpid())}
    assert elsewhere == (workers > 0)
    assert all(map(sweep.is_done, runs))


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_and_its_run_begun_again(runs):
    outcomes = list(sweep.work(runs[:2], workers=1, call=dies_once))
    assert [outcome.status for outcome in outcomes] == ["done", "done"]


@pytest.mark.slow
def test_a_worker_that_is_replaced_slowly_is_waited_for(runs):
    import dask

    outcomes = []

    def work():
        with dask.config.set({"distributed.deploy.lost-worker-timeout": "1 ms"}):
            outcomes.extend(sweep.work(runs[:1], workers=1, call=dies_once))

    thread = threading.Thread(target=work, daemon=True)  # where nobody replaces the worker it never ends
    thread.start()
    thread.join(120)
    assert [outcome.status for outcome in outcomes] == ["done"]


@pytest.mark.slow
def test_a_run_that_kills_every_worker_is_given_up_and_the_others_go_on(grid, capfd):
    runs = grid(notebooks={INFORMATION: {}}, models=["bad", "good"]).runs
    outcomes = {outcome.run.name: outcome for outcome in sweep.work(runs, workers=1, call=dies_always)}
    assert outcomes[runs[0].name].status == "failed"
    assert "worker was lost" in outcomes[runs[0].name].reason
    assert "KilledWorker" in runs[0].error.read_text()
    assert capfd.readouterr().err == ""
    assert outcomes[runs[1].name].status == "done"


@pytest.mark.slow
def test_a_scheduler_that_runs_already_is_used(runs):
    import distributed

    with distributed.LocalCluster(n_workers=1, processes=False, dashboard_address=None) as cluster:
        outcomes = list(sweep.work(runs, scheduler=cluster.scheduler_address, call=finish))
    assert [outcome.status for outcome in outcomes] == ["done"] * 3
    for nowhere in ("gone.json", str(runs[0].table.with_suffix(".json"))):  # which holds no address
        with pytest.raises(InputError, match="does not answer"):
            list(sweep.work([replace(runs[0], parameters={"steps": 1})], scheduler=nowhere, call=finish))
    with pytest.raises(InputError, match=r"scheduler 'tcp://127\.0\.0\.1:1' does not answer"):
        list(sweep.work([replace(runs[0], parameters={"steps": 1})], scheduler="tcp://127.0.0.1:1", call=finish))


@pytest.mark.slow
def test_a_scheduler_that_goes_while_a_run_is_on_its_way_is_told_in_one_sentence(runs, capfd):
    import distributed

    cluster = distributed.LocalCluster(n_workers=0, processes=False, dashboard_address=None)
    gone = threading.Timer(1, cluster.close)
    gone.start()
    with pytest.raises(InputError, match="is gone"):
        list(sweep.work(runs, scheduler=cluster.scheduler_address, call=finish))
    gone.join()
    assert "distributed" not in capfd.readouterr().err


def test_one_table_holds_all_runs_that_are_done_with_their_provenance(runs, tmp_path):
    assert sweep.combine(runs, tmp_path / "table.csv").empty
    finish(runs[0])
    finish(runs[2])
    made = sweep.combine(runs, tmp_path / "table.csv", grid="mine")
    read, origin = results.read(tmp_path / "table.csv")
    assert list(read)[:2] == ["run", "notebook"]
    pd.testing.assert_frame_equal(made.drop(columns="variant"), read.drop(columns="variant"), check_dtype=False)
    assert read.groupby("run")["model"].unique().map(list).tolist() == [["a"], ["c"]]
    assert origin["grid"] == "mine"
    assert list(origin["runs"]) == [runs[0].name, runs[2].name]
    own = json.loads(runs[0].table.with_suffix(".json").read_text())
    assert origin["runs"][runs[0].name]["sha256"] == own["sha256"]


def test_a_model_that_is_nowhere_is_refused_before_the_first_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "work", lambda runs, **_: map(finish, runs))
    content = {"notebooks": {INFORMATION: {}}, "models": ["x/a", "random:gpt2", "x/b"]}
    Path("mine.yaml").write_text(yaml.safe_dump(content))
    runs = sweep.load(Path("mine.yaml"), Path("runs/mine")).runs
    for missing in ("x/a", "x/b"):
        monkeypatch.setattr(names, "hub_answers", missing_model(missing))
        assert cli.main(["sweep", "mine.yaml", "--list"]) == 0
        assert cli.main(["sweep", "mine.yaml"]) == 2
        assert capsys.readouterr().err.startswith(f"error: no {missing}\n")
    assert not any(map(sweep.is_done, runs))
    assert cli.main(["sweep", "mine.yaml", "--scheduler", "tcp://elsewhere:1"]) == 0, "others may have it"
    assert cli.main(["sweep", "mine.yaml"]) == 0, "what is done needs no model"


def test_a_model_that_is_nowhere_is_refused_before_the_first_reference_run(monkeypatch, capsys):
    profile = profiles.load("smollm2-synthetic")
    changed = replace(profile, parameters={**profile.parameters, "model": "x/a"})
    monkeypatch.setattr(profiles, "load", lambda name: changed)
    monkeypatch.setattr(sweep, "is_done", lambda run: False)
    monkeypatch.setattr(sweep, "work", lambda *_, **__: pytest.fail("it starts"))
    monkeypatch.setattr(names, "hub_answers", missing_model("x/a"))
    assert cli.main(["reference", profile.name]) == 2
    assert capsys.readouterr().err.startswith("error: no x/a\n")


@pytest.mark.slow
def test_ridge_sweep_from_grid_to_table(tmp_path, monkeypatch, capfd):
    """The real thing: two notebooks in two processes, one of which cannot succeed."""
    monkeypatch.chdir(tmp_path)
    small = {"steps": 0, "n_samples": 8, "sampling_seeds": [0], "batch_size": 8}
    content = {"notebooks": {INFORMATION: small}, "models": ["random:gpt2", "random:none"]}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
    assert cli.main(["sweep", "tiny.yaml", "--list"]) == 0
    assert "0 of 2 runs are done." in capfd.readouterr().out
    assert cli.main(["sweep", "tiny.yaml", "--workers", "2"]) == 1
    out, err = capfd.readouterr()
    assert "[2/2]" in out
    assert "1 of 2 runs failed: predictive_information--random-none" in err
    folder = tmp_path / "runs" / "tiny"
    assert "Traceback" in (folder / f"{INFORMATION}--random-none" / "notebook.error.txt").read_text()
    read, origin = results.read(folder / "table.csv")
    assert set(read["run"]) == {f"{INFORMATION}--random-gpt2"}
    assert origin["runs"][f"{INFORMATION}--random-gpt2"]["parameters"]["n_samples"] == 8
    compared = pd.read_csv(folder / "comparison.csv")
    assert set(compared["run"]) == {f"{INFORMATION}--random-gpt2"}
    assert {"ridge_layer", "at_ridge", "at_last_block", "at_final_norm"} <= set(compared)
    assert (folder / "comparison.png").stat().st_size > 0
    assert cli.main(["sweep", "tiny.yaml", "--list"]) == 0
    assert "1 of 2 runs are done." in capfd.readouterr().out
