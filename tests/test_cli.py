import subprocess
import sys

import nbformat
import pytest

from ridge_utils import notebooks, results
from ridge_utils.errors import InputError
from ridge_utils.run import cli

NOTEBOOK = "predictive_information"


def test_list_and_params(capsys):
    assert cli.main(["list"]) == 0
    assert "predictive_information       Predictive information across depth" in capsys.readouterr().out
    assert cli.main(["params", NOTEBOOK]) == 0
    out = capsys.readouterr().out
    assert "n_samples: int = 200\n    examples per estimate" in out
    assert cli.main(["params", "nothing"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: There is no notebook 'nothing'; choose one of attention, ")
    assert all(name in said for name in notebooks.names())


def test_the_command_starts_without_what_takes_long_to_import():
    slow = ["torch", "transformers", "distributed", "rfc3987_syntax"]
    code = (
        f"import sys; from ridge_utils import cli; cli.main(['list']); print([m for m in {slow} if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.splitlines()[-1] == "[]"
    # What was left out for jsonschema's sake can be imported all the same.
    code = "from ridge_utils import cli; import jsonschema, rfc3987_syntax"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("assignment", "expected"),
    [
        ("n_samples=100", 100),
        ("learning_rate=1e-4", 1e-4),
        ("learning_rate=1", 1.0),
        ("sampling_seeds=[3, 4]", [3, 4]),
        ("training_seeds=[2]", [2]),
        ("model=gpt2", "gpt2"),
        ("model=Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
        ("task_options={holdout: 0.2}", {"holdout": 0.2}),
        ("compare=false", False),
        ("save_table=a=b.csv", "a=b.csv"),
        ("save_table=", ""),
        (f"model={'m' * 300}", "m" * 300),
    ],
)
def test_values_have_the_type_that_the_notebook_declares(assignment, expected):
    (value,) = notebooks.parse(NOTEBOOK, [assignment]).values()
    assert value == expected
    assert type(value) is type(expected)


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("n_sample=100", "no parameter 'n_sample'; its parameters are model, task, "),
        ("n_samples=many", "'n_samples' must be of type int, but is 'many'; its default is 200"),
        ("n_samples=1.5", "must be of type int"),
        ("n_samples=true", "must be of type int"),
        ("learning_rate=fast", "must be of type float"),
        ("learning_rate=true", "must be of type float"),
        ("sampling_seeds=3", r"must be of type list\[int\], such as \[0, 1, 2\], but is '3'"),
        ("sampling_seeds=[0, a]", r"must be of type list\[int\]"),
        ("sampling_seeds=[0", r"must be of type list\[int\]"),
        ("compare=maybe", "must be of type bool, such as true or false"),
        ("training_seed=1", "no parameter 'training_seed'; its parameters are model, task, "),
        ("task_options=[]", "must be of type dict"),
        ("n_samples", "given as name=value, not 'n_samples'"),
    ],
)
def test_a_wrong_name_or_type_is_an_error_that_says_what_is_valid(assignment, words, capsys):
    with pytest.raises(InputError, match=words):
        notebooks.parse(NOTEBOOK, [assignment])
    assert cli.main(["run", NOTEBOOK, "-p", assignment]) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_list_of_texts_is_one():
    assert notebooks.parse("multi_token", ["pairs=[aligned]"]) == {"pairs": ["aligned"]}
    for text in ("pairs=aligned", "pairs=[1]"):
        with pytest.raises(InputError, match=r"'pairs' must be of type list\[str\]"):
            notebooks.parse("multi_token", [text])


def test_a_path_is_that_of_the_callers_folder(tmp_path, monkeypatch):
    (tmp_path / "own.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)
    assert notebooks.parse(NOTEBOOK, ["task=own.jsonl"]) == {"task": str(tmp_path / "own.jsonl")}


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (notebooks.NOTEBOOKS / "mine.ipynb", "would overwrite a committed notebook"),
        ("mine.html", r"ending \.ipynb"),
        ("/dev/null/x/mine.ipynb", "Cannot write to /dev/null/x: Not a directory"),
    ],
)
def test_outputs_that_are_refused(output, words, capsys):
    assert cli.main(["run", NOTEBOOK, "-o", str(output)]) == 2
    assert words.replace("\\", "") in capsys.readouterr().err


SMALL = ["n_samples=20", "n_train=40", "steps=4", "sampling_seeds=[0, 1]"]


def arguments(*more):
    return [x for assignment in (*SMALL, *more) for x in ("-p", assignment)]


def test_run_gives_a_notebook_and_its_table_for_a_model_of_ones_own(tmp_path):
    output = tmp_path / "mine.ipynb"
    command = [
        sys.executable,
        "-m",
        "ridge_utils",
        "run",
        NOTEBOOK,
        *arguments("model=random:qwen2"),
        "-o",
        str(output),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "fine-tuning: 100%" in done.stderr, "the progress should show while it runs"
    notebook = nbformat.read(output, as_version=4)
    printed = [str(o.get("data", o)) for c in notebook.cells if c.cell_type == "code" for o in c.outputs]
    assert any("not the parameters of results/predictive_information.csv" in text for text in printed)
    # Two figures of its own; those of the stored reference runs follow where there are any.
    assert sum("image/png" in text for text in printed) >= 2
    table, origin = results.read(tmp_path / "mine.csv")
    assert origin["parameters"]["model"] == "random:qwen2"
    assert set(table["step"]) == {0, 1, 2, 4}
    assert set(table[table["step"] > 0]["train_seed"]) == {0}
    assert table[table["step"] == 0]["train_seed"].isna().all(), "no training seed shaped the untouched model"
    assert set(table["split"]) == {"id", "ood", "all"}
    assert len(table[table["quantity"] == "predictive_information"]) == 4 * 3 * 2 * 8


@pytest.mark.parametrize(
    ("assignment", "words"),
    [
        ("kernel=cosine", "Unknown kernel 'cosine'"),
        ("n_samples=1", "n_samples must be between 2 and"),
        ("task=sums", "Unknown task 'sums'"),
        ("bandwidth=0", "bandwidth must be greater than 0, but is 0.0"),
        ("sampling_seeds=[]", "sampling_seeds must be one or more different integers"),
    ],
)
def test_bad_values_that_the_notebook_finds_are_one_sentence(tmp_path, capsys, assignment, words):
    output = tmp_path / "x.ipynb"
    assert cli.main(["run", NOTEBOOK, *arguments("model=random:gpt2", assignment), "-o", str(output)]) == 2
    assert f"error: {words}" in capsys.readouterr().err


def test_the_untouched_model_needs_no_training_rows(tmp_path):
    rows = [f'{{"prompt": "{i} and", "target": " {i}", "split": "{s}"}}' for i in range(12) for s in ("id", "ood")]
    (tmp_path / "own.jsonl").write_text("\n".join(rows))
    output = tmp_path / "x.ipynb"
    given = ["model=random:llama", "steps=0", "n_samples=10", "n_examples=12", f"task={tmp_path / 'own.jsonl'}"]
    assert cli.main(["run", NOTEBOOK, *[x for g in given for x in ("-p", g)], "-o", str(output)]) == 0
    table, origin = results.read(tmp_path / "x.csv")
    assert set(table["step"]) == {0}
    assert table["train_seed"].isna().all()
    assert set(table["source"]) == {"own"}
    assert origin["device"] == "cpu"


def test_a_failing_cell_is_reported_with_the_notebook_to_look_at(tmp_path, capsys):
    output = tmp_path / "x.ipynb"
    assert (
        cli.main(["run", NOTEBOOK, *arguments("model=random:gpt2", "save_table=/dev/null/x.csv"), "-o", str(output)])
        == 2
    )
    assert "error: Cannot write to /dev/null: Not a directory" in capsys.readouterr().err
    assert output.exists()
