"""Study, store and measures: what the notebooks share, on tiny random models."""

import dataclasses
import json

import pytest
import torch

from ridge_utils import models, profiles, results, store, study, tasks
from ridge_utils.errors import InputError
from ridge_utils.representations import collect
from ridge_utils.tasks import Example

PARAMETERS = {
    "model": "random:gpt2-2x16",
    "task": "synthetic_arithmetic",
    "task_options": {},
    "data_dir": "",
    "n_train": 6,
    "steps": 2,
    "checkpoints": [],
    "learning_rate": 1e-3,
    "batch_size": 3,
    "training_seeds": [0, 5],
    "precision": "float32",
    "n_samples": 4,
    "n_examples": 6,
    "sampling_seeds": [0, 1],
    "device": "cpu",
    "dtype": "float32",
}
CONTEXT = {"model": "m", "task": "t", "source": "own", "step": 0, "train_seed": None}


# The store.


@dataclasses.dataclass(frozen=True)
class Numbers:
    a: torch.Tensor
    b: torch.Tensor


@pytest.fixture
def ask():
    """Ask the store, and tell how often it had to compute so far."""
    computed = []

    def ask(model, examples, **shaped_by):
        def compute():
            computed.append(shaped_by)
            return Numbers(torch.full((2,), float(len(computed))), torch.arange(3) > 1)

        return store.remember(Numbers, model, examples, compute, **shaped_by).a[0].item(), len(computed)

    return ask


def test_what_was_computed_once_is_remembered(model, examples, ask):
    assert ask(model, examples["id"], batch_size=2) == (1, 1)
    assert ask(model, list(examples["id"]), batch_size=2) == (1, 1)
    again = models.load(PARAMETERS["model"], device="cpu")
    assert ask(again, examples["id"], batch_size=2) == (1, 1), "the same weights are the same model"
    found = store.remember(Numbers, model, examples["id"], None, batch_size=2)
    assert isinstance(found, Numbers)
    assert found.b.tolist() == [False, False, True]


def test_whatever_shapes_a_computation_finds_another_entry(model, examples, ask):
    some = examples["id"]
    moved = models.load(model.name, device="cpu")
    with torch.no_grad():
        moved.final_norm.bias[0] += 1e-6
    configured = models.load(PARAMETERS["model"], device="cpu")
    configured.model.config.layer_norm_epsilon = 1e-3
    other_spans = [dataclasses.replace(some[0], signal_spans=((0, 1),)), *some[1:]]
    asked = [
        (model, some, {"batch_size": 2}),
        (model, some, {"batch_size": 3}),
        (model, some, {}),
        (model, some, {"batch_size": 2, "more": "x"}),
        (model, some[:-1], {"batch_size": 2}),
        (model, some[::-1], {"batch_size": 2}),
        (model, examples["ood"], {"batch_size": 2}),
        (model, [dataclasses.replace(some[0], target="0"), *some[1:]], {"batch_size": 2}),
        (model, other_spans, {"batch_size": 2}),
        (moved, some, {"batch_size": 2}),
        (configured, some, {"batch_size": 2}),
        (models.truncate(model, 1), some, {"batch_size": 2}),
        (models.load(PARAMETERS["model"], device="cpu", dtype="float64"), some, {"batch_size": 2}),
    ]
    for number, (loaded, given, shaped_by) in enumerate(asked, 1):
        assert ask(loaded, given, **shaped_by) == (number, number)
    for number, (loaded, given, shaped_by) in enumerate(asked, 1):
        assert ask(loaded, given, **shaped_by) == (number, len(asked))


# A study.


def test_the_untouched_model_comes_once_and_every_seed_has_its_checkpoints(model):
    work = study.prepare(PARAMETERS)
    seen = {(c.step, c.train_seed): models.fingerprint(c.loaded.model) for c in work.checkpoints()}
    assert list(seen) == [(0, None), (1, 0), (2, 0), (1, 5), (2, 5)], "0, a quarter, a half and all of 2 steps"
    assert seen[0, None] == models.fingerprint(model.model)
    assert len(set(seen.values())) == 5, "each has weights of its own"
    assert [(c.step, c.train_seed) for c in work.checkpoints(last=True)] == [(2, 0), (2, 5)]
    assert {len(some) for some in work.examples.values()} == {6}
    assert len(work.training_examples) == 6
    assert work.context == {"model": "random:gpt2-2x16", "task": "synthetic_arithmetic", "source": "synthetic"}
    assert work.sites == [(0, "embedding"), (1, "block"), (2, "block"), (2, "final_norm")]


def test_a_model_of_one_block_is_a_study_too(tmp_path):
    work = study.prepare(PARAMETERS | {"model": "random:gpt2-1x16", "training_seeds": [0]})
    for checkpoint in work.checkpoints(last=True):
        pools = work.pools(checkpoint)
        assert len(pools["all"].states) == 3
        rows = results.measurements([0.0, 1.0, 2.0], work.sites, "q", **CONTEXT, split="id", sample_seed=0, n=4)
    work.save(rows, str(tmp_path / "a.csv"))
    assert results.read(tmp_path / "a.csv")[0]["layer"].tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("changes", "every", "last"),
    [
        ({"steps": 0, "training_seeds": []}, [(0, None)], [(0, None)]),
        ({"checkpoints": [0]}, [(0, None)], [(0, None)]),
        ({"checkpoints": [2]}, [(2, 0), (2, 5)], [(2, 0), (2, 5)]),
        ({"checkpoints": [2, 0], "training_seeds": [5]}, [(0, None), (2, 5)], [(2, 5)]),
    ],
)
def test_checkpoints_are_those_asked_for(changes, every, last):
    work = study.prepare(PARAMETERS | changes)
    assert [(c.step, c.train_seed) for c in work.checkpoints()] == every
    assert [(c.step, c.train_seed) for c in work.checkpoints(last=True)] == last


def test_a_model_that_stays_untouched_needs_no_parameters_of_training_or_sampling():
    left_out = ("n_train", "steps", "checkpoints", "learning_rate", "training_seeds", "precision")
    left_out += ("n_samples", "n_examples", "sampling_seeds")
    parameters = {name: value for name, value in PARAMETERS.items() if name not in left_out}
    work = study.prepare(parameters, splits=("id",), n=3)
    assert {split: len(some) for split, some in work.examples.items()} == {"id": 3}
    assert (work.runs, work.training_examples) == ({}, [])


def test_a_given_model_takes_the_place_of_the_named_one(model, monkeypatch):
    monkeypatch.setattr(models, "load", None)
    short = models.truncate(model, 1)
    work = study.prepare(PARAMETERS | {"model": "no such model", "steps": 0}, short)
    assert work.base is short
    assert work.context["model"] == "random:gpt2-2x16[:1]"


def test_pools_are_the_states_of_both_splits_and_are_read_once(model, monkeypatch):
    work = study.prepare(PARAMETERS | {"training_seeds": [5]})
    for checkpoint in work.checkpoints():
        pools = work.pools(checkpoint)
        assert list(pools) == ["id", "ood", "all"]
        for place, split in enumerate(("id", "ood")):
            expected = collect(checkpoint.loaded, work.examples[split], batch_size=1, progress=False)
            torch.testing.assert_close(pools[split].hidden, expected.hidden, atol=1e-5, rtol=0)
            assert torch.equal(pools["all"].hidden[:, 6 * place : 6 * place + 6], pools[split].hidden)
            assert torch.equal(pools["all"].target_ids[6 * place : 6 * place + 6], expected.target_ids)
    monkeypatch.setattr("ridge_utils.store.forward", None)  # calling it would raise
    for checkpoint in work.checkpoints():
        assert len(work.pools(checkpoint)["all"]) == 12


def test_provenance_says_what_was_done_but_not_where_the_data_lie(tmp_path):
    work = study.prepare(PARAMETERS)
    hidden = dataclasses.replace(work, parameters=work.parameters | {"data_dir": str(tmp_path / "secret")})
    table = results.measurements([1.0], [(0, "embedding")], "q", **CONTEXT, split="id", sample_seed=0, n=4)
    hidden.save(table, str(tmp_path / "out" / "a.csv"), note="more")
    back, origin = results.read(tmp_path / "out" / "a.csv")
    assert len(back) == 1
    assert "secret" not in (tmp_path / "out" / "a.json").read_text()
    assert origin["parameters"] == json.loads(json.dumps(PARAMETERS)) | {"data_dir": "given"}
    assert origin["note"] == "more"
    assert origin["device"] == "cpu"
    assert origin["model"]["name"] == "random:gpt2-2x16"
    assert origin["model"]["weights_sha256"] == models.fingerprint(work.base.model)
    targets = {example.target for some in work.examples.values() for example in some}
    counted = {"train": 6, "id": 6, "ood": 6, "different targets": len(targets)}
    every = [*work.training_examples, *work.examples["id"], *work.examples["ood"]]
    assert origin["data"] == work.context | counted | {"sha256": tasks.digest(every)}
    assert [run["seed"] for run in origin["training"]] == [0, 5]
    assert [run["digest"] for run in origin["training"]] == [run.digest for run in work.runs.values()]
    assert {run["precision"] for run in origin["training"]} == {"float32"}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"training_seeds": [1, 2, 1]}, "training_seeds"),
        ({"n_samples": 7}, "n_samples"),
        ({"n_samples": 1, "n_examples": 0}, "n_samples"),
        ({"sampling_seeds": []}, "sampling_seeds"),
        ({"n_examples": 10**5, "task_options": {"noise_max": 1}}, "100000 .*n_examples=100000"),
        ({"n_samples": 10**5, "n_examples": 0, "task": "ecqa"}, "125000 .*n_samples=100000"),
        ({"n_train": 10**5, "task": "ecqa"}, "100000 .*n_train=100000"),
        ({"task": "sums"}, "'sums'"),
    ],
)
def test_what_does_not_fit_is_refused_before_a_model_is_loaded(monkeypatch, changes, words):
    def load(*_arguments, **_options):
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(models, "load", load)
    with pytest.raises(InputError, match=words):
        study.prepare(PARAMETERS | changes)
    with pytest.raises(AssertionError, match="a model was loaded"):
        study.prepare(PARAMETERS)


@pytest.fixture
def reference(tmp_path, monkeypatch):
    """Store a reference run of the notebook ``attention``, with its profile."""
    monkeypatch.setattr(profiles, "FOLDER", tmp_path)
    monkeypatch.setattr(results, "FOLDER", tmp_path)

    def write(name, parameters, data, value=0.0):
        (tmp_path / f"{name}.yaml").write_text(f"{{title: Profile {name}, notebooks: {{attention: {{}}}}}}")
        table = results.measurements([value], [(0, "embedding")], "q", **CONTEXT, split="id", sample_seed=0, n=4)
        origin = {"parameters": parameters, "data": data}
        results.write(table, tmp_path / "reference" / name / "attention.csv", origin)

    return write


def test_references_are_found_by_their_headings(reference):
    for value, name in enumerate(("b", "a")):
        reference(name, {"n_samples": 4}, {"id": 6, "ood": 6}, value)
    found = study.references("attention")
    assert {title: table["value"].item() for title, table in found.items()} == {
        "Profile a, n = 4 of 6 a split": 1.0,
        "Profile b, n = 4 of 6 a split": 0.0,
    }
    assert study.references("truncation") == {}


def test_another_form_of_the_answers_is_said_in_tables_figures_and_provenance():
    work = study.prepare(PARAMETERS | {"task_options": {"answer": "letter"}, "steps": 0})
    assert work.context["task"] == work.data["task"] == "synthetic_arithmetic:letter"
    assert "synthetic arithmetic, letter (" in work.title


def test_own_files_are_a_source_of_their_own(tmp_path):
    rows = [{"prompt": f"{i} and", "target": f" {i}", "split": s} for i in range(6) for s in ("id", "ood")]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    work = study.prepare(PARAMETERS | {"task": str(tmp_path / "own.jsonl"), "steps": 0})
    assert all(isinstance(e, Example) and e.source == "own" for e in work.examples["ood"])
