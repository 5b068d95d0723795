"""Predictions from the geometry of states: no target enters, and they are the prediction line of the anatomy page."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch

from ridge_utils import models, results, store
from ridge_utils.audit import anatomy, predictions
from ridge_utils.errors import StorageError
from ridge_utils.run import cli
from ridge_utils.tasks import Example


def test_other_targets_give_the_same_prediction(model, examples, monkeypatch, tmp_path):
    first = predictions.predict(model, examples)
    asked = []
    real = store.encode
    monkeypatch.setattr(store, "encode", lambda loaded, one: (asked.append(one), real(loaded, one))[1])
    pool = [*examples["id"], *examples["ood"]]
    others = {
        split: [replace(one, target=f" {i} or {one.target}", signal_spans=()) for i, one in enumerate(own)]
        for split, own in examples.items()
    }
    monkeypatch.setenv("RIDGE_CACHE", str(tmp_path))  # nothing that the first one left
    assert predictions.predict(model, others) == first
    assert len({one.target for one in asked}) == 1 and {one.prompt for one in asked} == {one.prompt for one in pool}


def test_the_prediction_is_the_line_of_the_anatomy_page(model, examples):
    pool = [*examples["id"], *examples["ood"]]
    found = predictions.predict(model, examples)
    context = {"model": "m", "task": "t", "source": "synthetic", "split": "all", "step": 0, "train_seed": None}
    states = store.read(model, pool, 16, False)
    table = anatomy.profile(states, context, sampling_seeds=predictions.SAMPLING_SEEDS, n_shuffles=1)
    for name, values in found["layers"].items():
        if name != "effective_rank":  # the page shows that of the whole pool
            line = table[(table["quantity"] == name) & (table["variant"] == "")]["value"]
            assert values == pytest.approx(line.tolist(), abs=1e-6)


def test_the_layer_is_the_largest_before_the_last_block_and_a_fall_is_one_after_it(monkeypatch):
    loaded = models.load("random:gpt2-4x16", device="cpu")
    pool = {"id": [Example(f"S{i} N2 S", "1", "id", "own") for i in range(8)]}
    for line, expected in (
        ([9.0, 1.0, 3.0, 2.0, 1.0, 8.0], (2, 0.5, 2, True)),
        ([9.0, 1.0, 2.0, 3.0, 4.0, 8.0], (3, 0.75, 4, False)),
    ):
        monkeypatch.setattr(anatomy, "spread_entropy", lambda *_, line=line: torch.tensor(line))
        found = predictions.predict(loaded, pool)
        assert (found["ridge_layer"], found["ridge_depth"], found["ridge_layer_to_last"], found["falls"]) == expected


def test_the_command_keeps_other_rows_and_replaces_its_own(tmp_path, capsys):
    path = tmp_path / "predictions.csv"
    for name in ("random:gpt2-2x16", "random:llama-2x16", "random:gpt2-2x16"):
        assert cli.main(["predict", name, "--task", "synthetic_arithmetic", "--task", "clutrr", "-o", str(path)]) == 0
    assert "commit it before" in capsys.readouterr().out
    table, origin = results.read(path)
    assert len(table) == 4 == len(origin["predictions"])
    assert set(table["model"]) == {"random:gpt2-2x16", "random:llama-2x16"}
    made = origin["predictions"]["random:gpt2-2x16, clutrr, synthetic, none"]
    assert len(made["layers"]["mean_cosine"]) == 4 and made["model"]["blocks"] == 2 and made["date"]
    for refused in (["--task", "nothing"], ["--task", "clutrr", "--task-options", "[1]"], []):
        assert cli.main(["predict", "random:gpt2-2x16", *refused, "-o", str(path)]) == 2
    other = tmp_path / "other.csv"
    results.write(pd.DataFrame([{"model": "m", "task": "t", "source": "s", "split": "all"}]), other, {"a": 1})
    with pytest.raises(StorageError, match="holds no predictions"):
        predictions.run("random:gpt2-2x16", ["clutrr"], path=other)
    assert json.loads(path.with_suffix(".json").read_text())["rows"] == 4
