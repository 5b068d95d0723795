"""Where a ridge is expected, from the geometry of the states alone: written down before anything is measured.

The entropy that :func:`ridge_utils.audit.anatomy.spread_entropy` foretells does not ask what the states are about. The
targets are taken out of the examples before these reach the model, so a prediction cannot have seen them.
"""

import inspect
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ridge_utils import models, results, statistics, tasks
from ridge_utils.audit import anatomy, geometry
from ridge_utils.errors import InputError, StorageError
from ridge_utils.models import LoadedModel
from ridge_utils.representations import Representations
from ridge_utils.store import read
from ridge_utils.tasks import Example

FILE = results.FOLDER / "predictions.csv"
#: Examples per split and seeds of the samples, the defaults of the anatomy notebook.
N_EXAMPLES, SAMPLING_SEEDS = 250, (0, 1, 2, 3, 42)
_SPLITS: tuple[tasks.Split, ...] = ("id", "ood")
_KEY = ["model", "task", "source", "options"]


def predict(loaded: LoadedModel, examples: Mapping[str, Sequence[Example]]) -> dict[str, Any]:
    """What the states of some examples, by split, foretell; their targets are not read.

    Returns:
        ``ridge_layer``, the block before the last whose predicted entropy is largest, and ``ridge_layer_to_last``, that
        of all blocks, both with their share of the depth; the entropy at the first of them and at the last block, nats;
        ``falls``, whether it is smaller there; ``n``, the examples of a sample; and ``layers``, the numbers behind
        these at Z_0, every block and after the final norm.
    """
    # In place of the target any text that has a token: the tokens of a prompt do not depend on it.
    pools = [
        read(loaded, [replace(example, target=" a", signal_spans=()) for example in own], 16, f"{split}, bare")
        for split, own in examples.items()
    ]
    states = Representations.join(pools).states
    size = states.shape[1]
    n = min(anatomy.PAPER_N, size // 2)
    samples = [statistics.subsample(size, n, seed) for seed in SAMPLING_SEEDS]
    cosine = geometry.mean_cosine(states)
    rank = torch.stack([geometry.effective_rank(states[:, sample]) for sample in samples]).mean(0)
    entropy = anatomy.spread_entropy(cosine, rank)
    last = len(loaded.blocks)
    if last < 2:
        raise InputError("A ridge is predicted before the last block, and this model has one block.")
    ridge, to_last = (1 + int(entropy[1:end].argmax()) for end in (last, last + 1))
    layers = {"predicted_entropy": entropy, "mean_cosine": cosine, "effective_rank": rank}
    return {
        "blocks": last,
        "n": n,
        "ridge_layer": ridge,
        "ridge_depth": ridge / last,
        "ridge_layer_to_last": to_last,
        "ridge_depth_to_last": to_last / last,
        "entropy_at_ridge": entropy[ridge].item(),
        "entropy_at_last": entropy[last].item(),
        "falls": bool(entropy[last] < entropy[ridge]),
        "layers": {name: [round(value, 6) for value in values.tolist()] for name, values in layers.items()},
    }


def run(
    model: str,
    chosen: Sequence[str],
    *,
    options: Mapping[str, Any] | None = None,
    data_dir: str = "",
    n_examples: int = N_EXAMPLES,
    path: Path = FILE,
) -> pd.DataFrame:
    """Predict for a model, untouched, on tasks, and put a row for each into the table at ``path``.

    Rows of other models and tasks stay. What made each row stands beside the table, with its date and commit.
    """
    drawn = {task: _draw(task, options or {}, data_dir, n_examples) for task in chosen}
    table, made = _stored(path)
    loaded = models.load(model, device="cpu")
    for task, examples in drawn.items():
        row = {"model": models.title(loaded.name), "task": tasks.title(task), "source": examples["id"][0].source}
        row |= {"split": "all", "options": json.dumps(options, sort_keys=True) if options else "none"}
        found = predict(loaded, examples)
        every = itertools.chain.from_iterable(examples.values())
        prompts = [replace(example, target="", signal_spans=()) for example in every]
        parameters = {"model": model, "task": task, "task_options": dict(options or {}), "n_examples": n_examples}
        origin = results.provenance(parameters | {"sampling_seeds": SAMPLING_SEEDS})
        made[", ".join(row[key] for key in _KEY)] = {
            "layers": found.pop("layers"),
            "model": models.describe(loaded),
            "prompts_sha256": tasks.digest(prompts),
            **{key: origin[key] for key in ("parameters", "date", "commit", "versions")},
        }
        new = pd.DataFrame([row | found])
        if len(table):
            table = table[~(table[_KEY] == new.loc[0, _KEY]).all(axis=1)]
        table = pd.concat([table, new], ignore_index=True).sort_values(_KEY, ignore_index=True)
        results.write(table, path, results.provenance({}, predictions=made))
    return table


def _draw(task: str, options: Mapping[str, Any], data_dir: str, n: int) -> dict[str, list[Example]]:
    """Examples of both splits; the folder of the real data goes to the tasks that read one."""
    reads = task in tasks.TASKS and "data_dir" in inspect.signature(tasks.TASKS[task].load).parameters
    where = {"data_dir": data_dir or None} if reads else {}
    return {split: tasks.load(task, split, n, **where, **options) for split in _SPLITS}


def _stored(path: Path) -> tuple[pd.DataFrame, dict[str, Any]]:
    if not path.exists():
        return pd.DataFrame(), {}
    table, origin = results.read(path)
    if "predictions" not in origin:
        raise StorageError(f"{path.name} holds no predictions: name another file.")
    return table, origin["predictions"]
