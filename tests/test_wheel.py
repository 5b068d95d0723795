"""What `pip install` gives: a wheel with all that the commands read, and dependencies with all that it imports."""

import ast
import importlib.metadata
import os
import subprocess
import sys
import sysconfig
import tomllib
import venv

import IPython.display
import myst_nb.ext.glue
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from ridge_utils import cache, notebooks, page, profiles, results

#: Imported only by commands that need a checkout, which say so.
MAINTAINERS = {"pytest", "nbval"}


def imported(code):
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


def test_what_is_imported_the_dependencies_bring():
    project = tomllib.loads((profiles.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    waiting = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["sweep"]]
    brought = set()
    while waiting:
        needed = waiting.pop()
        environments = [{"extra": extra} for extra in needed.extras] or [{"extra": ""}]
        name = canonicalize_name(needed.name)
        if name not in brought:
            brought.add(name)
            for one in map(Requirement, importlib.metadata.requires(name) or []):
                if not one.marker or any(map(one.marker.evaluate, environments)):
                    waiting.append(one)
    sources = [path.read_text(encoding="utf-8") for path in (profiles.ROOT / "ridge_utils").rglob("*.py")]
    for name in notebooks.names():
        sources += [cell["source"] for cell in notebooks.cells(name) if cell["cell_type"] == "code"]
    modules = {name.partition(".")[0] for source in sources for name in imported(source)}
    owners = importlib.metadata.packages_distributions()
    foreign = modules - sys.stdlib_module_names - {"ridge_utils"} - MAINTAINERS
    assert {module for module in foreign if not {*map(canonicalize_name, owners[module])} & brought} == set()


@pytest.mark.parametrize("value", [0.1 + 0.2, -3, 7, "the last block's", True])
def test_a_number_is_glued_as_myst_nb_does(value, monkeypatch):
    shown = []
    for place in (IPython.display, "display"), (myst_nb.ext.glue, "ipy_display"):
        monkeypatch.setattr(*place, lambda *given, **more: shown.append((given, more)))
    page.glue(name=value)
    myst_nb.glue("name", value, display=False)
    assert shown[0] == shown[1]


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel in an environment of its own, which sees this one's other packages; gives its `ridge`, to be called."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check"]
    build = ["wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(profiles.ROOT)]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv")
    site = folder / "venv" / "lib" / f"python{sys.version_info[0]}.{sys.version_info[1]}" / "site-packages"
    subprocess.run([*pip, "--python", folder / "venv", "install", "-q", "--no-deps", str(wheel)], check=True)
    (site / "others.pth").write_text(sysconfig.get_path("purelib"))  # which runs none of the .pth files there
    place = folder / "elsewhere"
    place.mkdir()
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    environment |= {cache.ENVIRONMENT_VARIABLE: str(folder / "cache"), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def call(*arguments):
        command = [folder / "venv" / "bin" / "ridge", *arguments]
        none = subprocess.DEVNULL
        done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, stdin=none)
        return done.returncode, done.stdout, done.stderr

    call.folder = place
    return call


@pytest.mark.slow
def test_the_wheel_runs_a_notebook_anywhere(installed):
    assert [line.split()[0] for line in installed("list")[1].splitlines()] == notebooks.names()
    small = "model=random:gpt2", "n_samples=20", "sampling_seeds=[0]", "steps=0", "checkpoints=[]"
    given = [part for assignment in small for part in ("-p", assignment)]
    status, _, said = installed("run", "predictive_information", *given, "-o", "mine.ipynb")
    assert status == 0, said
    _, origin = results.read(installed.folder / "mine.csv")
    assert origin["commit"] == f"version {importlib.metadata.version('ridge-utils')}"
    status, out, said = installed("sweep", str(profiles.FOLDER.parent / "grids" / "paper.yaml"), "--list")
    assert status == 0 and "0 of 216 runs are done." in out, said


@pytest.mark.slow
def test_the_wheel_writes_nothing_into_itself(installed):
    for command in (["refresh"], ["audit", "random:gpt2", "--add"]):
        status, out, said = installed(*command)
        assert (status, out) == (2, ""), said
        assert "checkout" in said.splitlines()[-1]
