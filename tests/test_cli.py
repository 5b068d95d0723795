import re
import subprocess
import sys

import nbformat
import pytest

from ridge_utils import notebooks, results
from ridge_utils.errors import InputError
from ridge_utils.run import cli, plain

NOTEBOOK = "predictive_information"


def test_list_and_params(capsys):
    assert cli.main(["list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in notebooks.names())
    assert cli.main(["params", NOTEBOOK]) == 0
    assert "n_samples: int = 200" in capsys.readouterr().out
    assert cli.main(["params", "nothing"]) == 2
    assert "'nothing'" in capsys.readouterr().err


def test_the_command_starts_without_what_takes_long_to_import():
    slow = ["torch", "transformers", "distributed", "papermill", "jsonschema", "pandas"]
    code = f"import sys; from ridge_utils.run import cli; cli.main(['list']); print({set(slow)} & set(sys.modules))"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "set()"


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("n_samples=100", 100),
        ("learning_rate=1e-4", 1e-4),
        ("learning_rate=1", 1.0),
        ("sampling_seeds=[3, 4]", [3, 4]),
        ("model=Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
        ("task_options={holdout: 0.2}", {"holdout": 0.2}),
        ("compare=false", False),
        ("save_table=", ""),
        (f"model={'m' * 300}", "m" * 300),
    ],
)
def test_values_have_the_type_that_the_notebook_declares(assignment, expected):
    (value,) = notebooks.parse(NOTEBOOK, [assignment]).values()
    assert value == expected
    assert type(value) is type(expected)


def test_a_list_of_texts_is_one():
    assert notebooks.parse("multi_token", ["pairs=[aligned]"]) == {"pairs": ["aligned"]}
    for text in ("pairs=aligned", "pairs=[1]"):
        with pytest.raises(InputError, match=r"'pairs' must be of type list\[str\]"):
            notebooks.parse("multi_token", [text])


def test_a_path_is_that_of_the_callers_folder_and_a_bare_name_is_the_hubs(tmp_path, monkeypatch, caplog):
    (tmp_path / "own.jsonl").write_text("")
    for name in ("gpt2", "real"):
        (tmp_path / name).mkdir()
    (tmp_path / "gpt2" / "config.json").write_text("{}")
    monkeypatch.chdir(tmp_path)
    assert notebooks.parse(NOTEBOOK, ["task=own.jsonl"]) == {"task": str(tmp_path / "own.jsonl")}
    assert notebooks.parse(NOTEBOOK, ["data_dir=real"]) == {"data_dir": str(tmp_path / "real")}
    assert notebooks.parse(NOTEBOOK, ["model=./gpt2"]) == {"model": str(tmp_path / "gpt2")}
    assert not caplog.records
    assert notebooks.parse(NOTEBOOK, ["model=gpt2"]) == {"model": "gpt2"}
    assert "./gpt2 names the folder" in caplog.text


def test_a_run_is_the_default_run_unless_what_is_found_may_change():
    assert notebooks.is_default_run(NOTEBOOK, {"n_samples": 200, "device": "cuda", "compare": False})
    assert not notebooks.is_default_run(NOTEBOOK, {"n_samples": 201})


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (notebooks.NOTEBOOKS / "mine.ipynb", "would overwrite a committed notebook"),
        ("mine.html", r"must end in \.ipynb"),
        ("/dev/null/x/mine.ipynb", "Cannot write to /dev/null/x: Not a directory"),
    ],
)
def test_outputs_that_are_refused(output, words, capsys):
    assert cli.main(["run", NOTEBOOK, "-o", str(output)]) == 2
    assert words.replace("\\", "") in capsys.readouterr().err


SMALL = ["n_samples=20", "n_train=40", "steps=4", "checkpoints=[0, 2, 4]", "sampling_seeds=[0, 1]"]


def arguments(*more):
    return [x for assignment in (*SMALL, *more) for x in ("-p", assignment)]


def test_mathematics_of_a_page_needs_no_script(tmp_path):
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(r"It is $\beta_l \ge 0$.")])
    nbformat.write(notebook, tmp_path / "mine.ipynb")
    page = plain.html(tmp_path / "mine.ipynb").read_text(encoding="utf-8")
    assert "<math" in page
    assert "β" in page or "&beta;" in page or "&#946;" in page
    assert "mathjax" not in page.lower()


@pytest.mark.slow
def test_run_gives_a_notebook_a_page_and_a_table_for_a_model_of_ones_own(tmp_path):
    output = tmp_path / "mine.ipynb"
    command = [sys.executable, "-m", "ridge_utils", "run", NOTEBOOK, *arguments("model=random:qwen2")]
    done = subprocess.run([*command, "--html", "-o", str(output)], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "fine-tuning: 100%" in done.stderr, "the progress should show while it runs"
    notebook = nbformat.read(output, as_version=4)
    assert not [cell for cell in notebook.cells if "default-run" in cell.metadata.get("tags", [])]
    assert not [o for cell in notebook.cells for o in cell.get("outputs", []) if "%|" in o.get("text", "")]
    assert not [cell for cell in notebook.cells if cell.cell_type == "markdown" and "{term}" in cell.source]
    assert [cell for cell in notebook.cells if "own-run" in cell.metadata.get("tags", [])], "what was found in it"
    page = (tmp_path / "mine.html").read_text(encoding="utf-8")
    assert "data:image/png;base64," in page
    assert not re.search(r"<(script|link)[^>]*(src|href)=\"?(https?:)?//", page), "it needs no network"
    table, origin = results.read(tmp_path / "mine.csv")
    assert origin["parameters"]["model"] == "random:qwen2"
    assert set(table["step"]) == {0, 2, 4}
    assert set(table[table["step"] > 0]["train_seed"]) == {0}
    assert table[table["step"] == 0]["train_seed"].isna().all(), "no training seed shaped the untouched model"
    assert set(table["split"]) == {"id", "ood", "all"}
    assert len(table[table["quantity"] == "predictive_information"]) == 3 * 3 * 2 * 8


@pytest.mark.slow
def test_what_goes_wrong_in_a_cell_is_one_sentence_with_the_notebook_to_look_at(tmp_path, capsys):
    output = tmp_path / "x.ipynb"
    (tmp_path / "config.json").write_text("{}")
    given = arguments(f"model={tmp_path}", "steps=0", "checkpoints=[]")
    assert cli.main(["run", NOTEBOOK, *given, "-o", str(output)]) == 2
    assert str(tmp_path) in capsys.readouterr().err
    assert output.exists()


# Plain Markdown.


@pytest.mark.parametrize(
    ("myst", "expected"),
    [
        ("the {term}`ridge layer <ridge>`", "the ridge layer"),
        ("{glue:text}`fall:.3f` nats", "0.025 nats"),
        ("{cite:p}`sinha2019clutrr`", "(Sinha et al., 2019)"),
        ("{numref}`fig-a`, {numref}`fig-b`", "Figure 1, the figure"),
        ("{py:func}`~ridge_utils.information.entropy`", "`ridge_utils.information.entropy`"),
        ("{download}`table <../results/a.csv>`", "table"),
        ("[](../book/glossary.md) and [here](https://a.org)", "*Glossary* and [here](https://a.org)"),
        (":::{dropdown} How\n:open:\nbody {term}`x`\n:::", "<details><summary>How</summary>\n\nbody x\n\n</details>"),
        ("```{math}\n:label: e\na_b\n```", "$$\na_b\n$$"),
        ("```\n{term}`x`\n```", "```\n{term}`x`\n```"),
    ],
)
def test_myst_as_plain_markdown(myst, expected):
    assert plain.markdown(myst, {"fall": 0.02512}, {"fig-a": 1}) == expected


@pytest.mark.parametrize("notebook", notebooks.names())
def test_no_role_is_left_in_a_committed_page(notebook):
    for cell in notebooks.cells(notebook):
        if cell["cell_type"] == "markdown":
            shown = plain.markdown(cell["source"])
            assert not re.search(r"(?<!\w)\{[a-z:]+\}`|^:::", shown, re.MULTILINE), shown
