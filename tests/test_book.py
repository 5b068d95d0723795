"""What a page depends on, in which order the pages are made, and which outputs the book shows."""

import argparse

import build
import execute
import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager

from ridge_utils import notebooks

INFORMATION = "predictive_information"


def test_a_page_depends_on_what_its_code_imports_and_not_on_what_draws():
    code = "\n".join(cell["source"] for cell in notebooks.cells(INFORMATION) if cell["cell_type"] == "code")
    modules = set(execute.imported(code))
    assert {"ridge_utils.information", "ridge_utils.models", "ridge_utils.tasks.clutrr"} <= modules
    assert not modules & execute.DISPLAY
    assert "ridge_utils.training" not in execute.imported("from ridge_utils import information")


def test_words_are_no_code():
    first = 'def f(x):\n    """Twice."""\n    return 2 * x  # a comment\n'
    assert execute._without_words(first) == execute._without_words("def f(x):\n\n    return 2*x")
    assert execute._without_words(first) != execute._without_words("def f(x):\n    return 3 * x")


def test_the_key_changes_with_a_table_that_the_page_names(monkeypatch):
    before = execute.key(INFORMATION)
    assert execute.key(INFORMATION) == before
    digest = execute._digest
    changed = execute.ROOT / "results" / f"{INFORMATION}.csv"
    monkeypatch.setattr(execute, "_digest", lambda path: "other" if path == changed else digest(path))
    assert execute.key(INFORMATION) != before


def test_the_book_shows_committed_words_with_fresh_outputs_where_the_code_is_the_same(tmp_path):
    def write(name, words, code, printed):
        cells = [nbformat.v4.new_markdown_cell(words), nbformat.v4.new_code_cell(code)]
        cells[1].outputs = [nbformat.v4.new_output("stream", text=printed)]
        own = nbformat.v4.new_code_cell("own", metadata={"tags": ["own-run"]})
        path = tmp_path / name
        nbformat.write(nbformat.v4.new_notebook(cells=[*cells, own]), path)
        return path

    committed = write("committed.ipynb", "new words", "x", "stored")
    for code, printed in (("x", "fresh"), ("y", "stored")):
        executed = write("executed.ipynb", "old words", code, "fresh")
        page = nbformat.reads(build.page(committed, executed).decode(), as_version=4)
        assert [cell.source for cell in page.cells] == ["new words", "x"], "what a run of one's own says is left out"
        assert page.cells[1].outputs[0].text == printed


ADDRESS = "https://github.com/nobody/nothing"


@pytest.mark.parametrize("ending", ["", ".git", "/"])
def test_a_repository_turns_buttons_and_launchers_on(ending):
    assert build.repository(ADDRESS + ending) == ADDRESS
    before = {"html": {"use_issues_button": False}}
    config = build.with_buttons(before, ADDRESS)
    assert config["repository"]["url"] == ADDRESS
    assert config["html"] == dict.fromkeys(("use_repository_button", "use_edit_page_button", "use_issues_button"), True)
    assert {"colab_url", "binderhub_url"} <= set(config["launch_buttons"])
    assert before == {"html": {"use_issues_button": False}}


@pytest.mark.parametrize("wrong", ["nothing", "https://example.org/a/b", "https://github.com/nobody", f"{ADDRESS}/x"])
def test_what_is_no_repository_is_refused(wrong):
    with pytest.raises(argparse.ArgumentTypeError, match="OWNER/NAME"):
        build.repository(wrong)


def test_a_downloaded_notebook_begins_with_a_cell_that_installs_and_the_page_leaves_it_out():
    path = execute.ROOT / "notebooks" / f"{INFORMATION}.ipynb"
    plain, told = (nbformat.reads(build.page(path, path, to).decode(), as_version=4).cells for to in ("", ADDRESS))
    assert len(told) == len(plain) + 1
    (cell,) = [one for one in told if one.id == "install"]
    assert "remove-cell" in cell.metadata.tags and f"git+{ADDRESS}" in cell.source
    assert [one.id for one in told if one is not cell] == [one.id for one in plain]
    nbformat.validate(nbformat.reads(build.page(path, path, ADDRESS).decode(), as_version=4))
    # With the project at hand the cell does nothing.
    exec(TransformerManager().transform_cell(cell.source), {"get_ipython": lambda: pytest.fail("it was to do nothing")})


def test_the_book_is_not_built_on_a_fact_that_does_not_hold(monkeypatch):
    monkeypatch.setattr("answer.facts", lambda: {"it rains": True, "pigs fly": False})
    with pytest.raises(SystemExit, match=r"\n  pigs fly$"):
        build.substitutions()
    monkeypatch.setattr("answer.facts", lambda: {"it rains": True})
    monkeypatch.setattr("answer.numbers", lambda: {"drops": "9"})
    assert build.substitutions() == {"drops": "9"}
