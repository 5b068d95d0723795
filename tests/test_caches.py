"""What is said of this machine and its cache, what is cleared, and that nothing is that a living process uses."""

import json
import os
import subprocess
import sys
import time

import nbformat
import pytest
import torch

from ridge_utils import cache, notebooks
from ridge_utils.errors import InputError
from ridge_utils.run import caches, cli, doctor

USES = """
import sys
from ridge_utils import cache
with cache.lock(cache.directory() / "Kind" / cache.digest({"n": 1})):
    pass
print("used", flush=True)
sys.stdin.read()
"""


def make(kind, n, model="", age=0.0):
    cache.tensors(kind, {"n": n}, lambda: {"a": torch.ones(n)}, model)
    folder = cache.directory() / kind / cache.digest({"n": n})
    os.utime(f"{folder}.lock", (time.time() - age,) * 2)
    return folder


def end():
    """What the end of this process would do: its notes are held no longer."""
    os.close(cache._noted["file"])
    cache._noted.clear()


@pytest.fixture
def filled(own_cache):
    """Entries of two kinds and two models, of one, ten and forty days, that no process uses."""
    made = {
        "new": make("Kind", 1, "gpt2", 86400),
        "old": make("Kind", 2, "qwen", 10 * 86400),
        "large": make("Other", 2_000_000, "gpt2", 40 * 86400),
    }
    end()
    return made


@pytest.mark.parametrize(
    ("chosen", "names"),
    [
        ([], {"new", "old", "large"}),
        (["--kind", "Kind"], {"new", "old"}),
        (["--model", "gpt2"], {"new", "large"}),
        (["--older-than", "1w"], {"old", "large"}),
        (["--older-than", "30d", "--kind", "Kind"], set()),
        (["--larger-than", "5"], {"large"}),
    ],
)
def test_what_is_chosen_is_listed_and_cleared_and_the_rest_stays(filled, chosen, names, capsys):
    assert cli.main(["cache", *chosen, "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)
    assert {entry["folder"] for entry in listed} == {str(filled[name]) for name in names}
    assert all(entry["bytes"] == sum(p.stat().st_size for p in os.scandir(entry["folder"])) for entry in listed)
    assert cli.main(["cache", *chosen, "--clear", "--yes"]) == 0
    assert {name for name, folder in filled.items() if not folder.exists()} == names


def test_nothing_is_cleared_unasked_and_what_is_not_there_is_said(filled, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", None)
    for wrong in (["--clear"], ["--kind", "x"], ["--model", "x"], ["--older-than", "5"]):
        assert cli.main(["cache", *wrong]) == 2
    assert all(folder.exists() for folder in filled.values())
    assert "--yes" in capsys.readouterr().err
    with pytest.raises(InputError):
        caches.seconds("-1d")


def test_what_a_living_process_has_used_is_cleared_only_after_its_end(filled):
    with subprocess.Popen([sys.executable, "-c", USES], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"used\n"
        assert {entry.folder for entry in caches.entries() if entry.in_use} == {filled["new"]}
        assert caches.clear(caches.choose(), yes=True) == 0
        assert [entry.folder for entry in caches.entries()] == [filled["new"]]
        assert cache.damage(filled["new"]) is None
        process.kill()
    assert caches.clear(caches.choose(), yes=True) == 0
    assert caches.entries() == []


def test_what_is_being_made_is_not_cleared(own_cache):
    folder = make("Kind", 3)
    end()
    hold = f"import filelock; a = filelock.FileLock({str(folder) + '.lock'!r}); a.acquire(); print(flush=True); input()"
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        process.stdout.readline()
        assert not cache.clear(folder)
        process.kill()
    assert cache.clear(folder)


def test_what_a_killed_process_left_goes_with_its_entry(own_cache):
    folder = make("Kind", 3)
    left = folder.with_name(f".{folder.name}.abc")
    left.mkdir()
    end()
    assert cache.clear(folder)
    assert not left.exists()


def test_the_doctor_counts_what_the_cache_lists(filled, monkeypatch, capsys):
    for answers in ("_hub_answers", "_index_answers"):
        monkeypatch.setattr(doctor, answers, lambda: False)
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["cache"]["entries"], found["cache"]["folder"]) == (3, str(cache.directory()))
    assert found["versions"]["torch"] == torch.__version__
    assert found["machine"]["threads"] == torch.get_num_threads()
    assert found["network"] == {"Hub": False, "package index": False}


def test_lab_copies_what_is_missing_in_plain_markdown_and_keeps_what_is_there(tmp_path):
    (tmp_path / "attention.ipynb").write_text("mine")
    assert cli.main(["lab", str(tmp_path), "--copy-only"]) == 0
    assert {path.stem for path in tmp_path.glob("*.ipynb")} == set(notebooks.names())
    assert (tmp_path / "attention.ipynb").read_text() == "mine"
    copy = nbformat.read(tmp_path / "truncation.ipynb", as_version=4)
    committed = nbformat.read(notebooks.find("truncation"), as_version=4)
    assert [c.source for c in copy.cells if c.cell_type == "code"] == [
        c.source for c in committed.cells if c.cell_type == "code"
    ]
    assert not [c for c in copy.cells if c.cell_type == "markdown" and "{glue" in c.source]


def test_json_says_what_the_text_says(capsys):
    assert cli.main(["list", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {name: notebooks.title(name) for name in notebooks.names()}
    assert cli.main(["params", "attention", "--json"]) == 0
    found = {p["name"]: p["default"] for p in json.loads(capsys.readouterr().out)}
    assert found.items() >= notebooks.defaults("attention").items()
    assert cli.main(["reference", "smollm2-synthetic", "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out).values()) == {True}


def test_bash_completes_commands_notebooks_and_options(capsys):
    assert cli.main(["completion", "zsh"]) == 0
    assert capsys.readouterr().out.startswith("#compdef ridge")
    assert cli.main(["completion", "bash"]) == 0
    script = capsys.readouterr().out

    def complete(*words):
        asked = f"{script}\nCOMP_WORDS=({' '.join(words)}); COMP_CWORD={len(words) - 1}; _shtab_ridge"
        command = ["bash", "-c", f'{asked}; printf "%s\n" "${{COMPREPLY[@]}}"']
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    assert complete("ridge", "swe") == ["sweep"]
    assert complete("ridge", "run", "trunc") == ["truncation"]
    assert complete("ridge", "run", "truncation", "--h") == ["--help", "--html"]
