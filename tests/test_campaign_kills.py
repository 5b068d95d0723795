"""The fast part of kills, of pairs and of full disks: a notebook that measures nothing takes the place of the runs."""

import errno
import json
import os
import signal
from pathlib import Path

import nbformat
import papermill
import pytest

from ridge_utils import notebooks, results
from ridge_utils.run import sweep
from tests.campaign import full, kills, together
from tests.campaign.commands import TINY
from tests.test_sweep import finish, grid, runs  # noqa: F401


@pytest.mark.slow
def test_after_a_kill_the_same_command_ends_well_and_nothing_is_left():
    assert not kills.kill(TINY, "kernel's command", signal.SIGKILL, 0)


@pytest.mark.slow
def test_two_at_once_find_what_one_finds():
    assert not together.both(TINY, TINY, 0.5)


@pytest.mark.slow
def test_without_room_one_sentence_says_so_and_nothing_is_destroyed():
    assert not full.meet(TINY, "out", "full", 0.0)


@pytest.mark.parametrize("where", ["notebook", "finish"])
def test_a_run_that_fails_after_its_table_was_written_is_not_done(runs, monkeypatch, where):  # noqa: F811
    run = runs[0]

    def execute(_source, output, given, **_):
        Path(output).write_text(nbformat.writes(nbformat.v4.new_notebook(metadata={"papermill": {}})))
        made = Path(given["save_table"])
        parameters = {**notebooks.defaults(run.notebook), **run.parameters}
        results.write(results.read(finish(other).run.table)[0], made, {"parameters": parameters})
        if where == "notebook":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    other = runs[1]
    monkeypatch.setattr(papermill, "execute_notebook", execute)
    if where == "finish":
        monkeypatch.setattr(sweep.plain, "finish", lambda *_: 1 / 0)
    for _ in range(2):
        assert sweep.execute(run).status == "failed"
        assert not sweep.is_done(run)
    monkeypatch.undo()
    monkeypatch.setattr(papermill, "execute_notebook", execute)
    where = ""
    assert sweep.execute(run).status == "done"
    assert sweep.is_done(run)
    assert not [path for path in run.table.parent.iterdir() if path.name.startswith(".")]


def test_a_refresh_that_fails_leaves_table_and_page_as_they_were(tmp_path, monkeypatch):
    name = "predictive_information"
    (tmp_path / "notebooks").mkdir()
    page = tmp_path / "notebooks" / f"{name}.ipynb"
    page.write_bytes(notebooks.find(name).read_bytes())
    table = tmp_path / "results" / f"{name}.csv"
    results.write(results.read(results.FOLDER / f"{name}.csv")[0], table, {})
    before = [path.read_bytes() for path in (page, table, table.with_suffix(".json"))]
    monkeypatch.setattr(notebooks, "NOTEBOOKS", page.parent)

    def execute(_source, output, given, **_):
        if given:
            Path(output).write_text(json.dumps({}))
            results.write(results.read(table)[0].head(3), Path(given["save_table"]), {})
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr(papermill, "execute_notebook", execute)
    with pytest.raises(KeyboardInterrupt):
        notebooks.refresh(name)
    assert [path.read_bytes() for path in (page, table, table.with_suffix(".json"))] == before
