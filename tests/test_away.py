"""Workers that do not see the client's disk: what their runs write comes back, or it is said what they lack."""

import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import replace

import pandas as pd
import pytest
import yaml

from ridge_utils import profiles, results
from ridge_utils.run import cli, sweep
from tests.test_sweep import INFORMATION, finish

SMALL = {"steps": 0, "n_samples": 8, "sampling_seeds": [0], "batch_size": 8}


@pytest.fixture
def run(tmp_path):
    folder = tmp_path / "client" / "x"
    return sweep.Run("x", INFORMATION, {"steps": 0}, folder / "table.csv", folder / "notebook.ipynb")


def fail(run, _quiet):
    run.error.write_text(f"in {run.output.parent}")
    return sweep.Outcome(run, "failed", reason="so")


def test_what_a_run_writes_where_the_folder_is_not_seen_is_what_it_writes_here(run, tmp_path):
    finish(run)
    here = {path.name: path.read_bytes() for path in run.table.parent.iterdir()}
    shutil.rmtree(run.table.parent)
    outcome, written = sweep.away(finish, run, True, tmp_path / "nowhere")
    assert not run.table.parent.exists()
    sweep._take(run, written)
    assert {path.name: path.read_bytes() for path in run.table.parent.iterdir()} == here
    assert outcome == replace(outcome, run=run, status="done")
    assert sweep.is_done(run)


def test_of_a_run_that_fails_away_the_traceback_comes_back_with_the_clients_paths(run, tmp_path):
    outcome, written = sweep.away(fail, run, True, tmp_path / "nowhere")
    sweep._take(run, written)
    assert (outcome.run, outcome.status) == (run, "failed")
    assert run.error.read_text() == f"in {run.output.parent}"


def test_where_the_folder_is_seen_nothing_is_sent(run, tmp_path):
    outcome, written = sweep.away(finish, run, True, tmp_path)
    assert written == {} and sweep.is_done(outcome.run)


@pytest.fixture
def elsewhere(tmp_path):
    """A scheduler, and a worker before whose eyes an empty disk lies over the client's; gives the address."""
    hidden = tmp_path / "client"
    hidden.mkdir()
    private = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    mount = ["sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(hidden)]
    if not shutil.which("unshare") or subprocess.run([*private, *mount, "true"], capture_output=True).returncode:
        pytest.skip("no mount namespaces here")
    file, dask = tmp_path / "scheduler.json", [sys.executable, "-m", "dask"]
    environment = os.environ | {"RIDGE_CACHE": str(tmp_path / "workers"), "OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = str(profiles.ROOT)
    where = {"env": environment, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": tmp_path}
    at_file = ["--scheduler-file", str(file)]
    scheduler = subprocess.Popen([*dask, "scheduler", "--port", "0", "--no-dashboard", *at_file], **where)
    while not file.exists():
        time.sleep(0.1)
    # No nanny: its end is the worker's.
    worker = [*dask, "worker", *at_file, "--nthreads", "1", "--no-nanny", "--no-dashboard"]
    worker = subprocess.Popen([*private, *mount, *worker], **where)
    yield json.loads(file.read_text())["address"]
    for process in (worker, scheduler):
        process.terminate()
        process.wait()


@pytest.mark.slow
def test_a_sweep_on_a_worker_without_the_clients_disk(elsewhere, tmp_path, capfd):
    output = tmp_path / "client" / "out"

    def sweep_of(**parameters):
        content = {"notebooks": {INFORMATION: SMALL | parameters}, "models": ["random:gpt2-2x16", "random:none"]}
        (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(content))
        status = cli.main(["sweep", str(tmp_path / "tiny.yaml"), "--scheduler", elsewhere, "-o", str(output)])
        return status, capfd.readouterr()

    (tmp_path / "client" / "mine.jsonl").write_text("")
    status, said = sweep_of(task=str(tmp_path / "client" / "mine.jsonl"))
    assert (status, said.err.count(f"does not see {tmp_path / 'client' / 'mine.jsonl'}")) == (1, 2)
    status, said = sweep_of()
    assert status == 1, said.err
    good, bad = (output / f"{INFORMATION}--random-{name}" for name in ("gpt2-2x16", "none"))
    made, _ = results.read(good / "table.csv")
    alone = sweep.Run("x", INFORMATION, SMALL | {"model": "random:gpt2-2x16"}, tmp_path / "a.csv", tmp_path / "a.ipynb")
    assert sweep.execute(alone).status == "done"
    pd.testing.assert_frame_equal(made, results.read(alone.table)[0])
    assert str(good / "table.csv") in (good / "notebook.ipynb").read_text()
    assert "Traceback" in (bad / "notebook.error.txt").read_text()
    assert set(pd.read_csv(output / "table.csv")["run"]) == {good.name}
    assert not [path for path in output.rglob(".ridge-*")]
