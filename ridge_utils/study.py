"""What the notebooks share: a task's examples, a model, its fine-tunings, and the way to their checkpoints.

A study is made from a notebook's parameters; what two notebooks have in common is computed once and found in the cache.
"""

import itertools
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from ridge_utils import attention, models, profiles, results, statistics, tasks, training
from ridge_utils.attention import AttentionShares
from ridge_utils.errors import TooFewExamplesError, check_seeds
from ridge_utils.models import LoadedModel
from ridge_utils.representations import Representations
from ridge_utils.store import read, remember
from ridge_utils.tasks import Example
from ridge_utils.training import TrainingRun


@dataclass(frozen=True)
class Checkpoint:
    """A model after so many steps of one fine-tuning; the untouched one has step 0 and no seed."""

    loaded: LoadedModel
    step: int
    train_seed: int | None


@dataclass(frozen=True)
class Study:
    """A model on a task: its examples, and one fine-tuning per training seed."""

    #: the parameters that it was made from
    parameters: dict[str, Any]
    #: the untouched model
    base: LoadedModel
    #: evaluation examples by split, ``id`` and ``ood``
    examples: dict[str, list[Example]]
    #: training examples, none if the model stays untouched
    training_examples: list[Example] = field(repr=False)
    #: the fine-tuning of each training seed; empty if the model stays untouched
    runs: dict[int, TrainingRun]
    #: when it was made, on the monotonic clock
    started: float

    @property
    def sites(self) -> list[tuple[int, str]]:
        """(layer, site) of every state, the one after the final norm last."""
        return results.sites(len(self.base.blocks))

    @property
    def context(self) -> dict[str, Any]:
        """Model, task and source, the columns of its tables that never change."""
        return {
            "model": models.title(self.base.name),
            "task": tasks.title(self.parameters["task"], self.parameters["task_options"]),
            "source": next(iter(self.examples.values()))[0].source,
        }

    @property
    def title(self) -> str:
        """What figures are headed with, the model as its makers write it, the task and the source."""
        task = str(self.context["task"]).replace("_", " ").replace(":", ", ")
        return f"{models.display_name(self.base.name)}, {task} ({SOURCES[self.context['source']]})"

    def checkpoints(self, last: bool = False, ends: bool = False) -> Iterator[Checkpoint]:
        """The untouched model once, then every checkpoint of every training seed.

        With ``last``, only the last checkpoint of each seed; with ``ends``, the untouched model and those.
        """
        steps = {step for run in self.runs.values() for step in run.steps}
        if not self.runs or ends or (0 in steps and not last) or steps == {0}:
            yield Checkpoint(self.base, 0, None)
        for seed, run in self.runs.items():
            for step in run.steps[-1:] if last or ends else run.steps:
                if step > 0:
                    yield Checkpoint(run.load(step), step, seed)

    def pools(self, checkpoint: Checkpoint) -> dict[str, Representations]:
        """The states of the ID and the OOD examples, and of both together, from the cache where they are there."""
        batch_size = self.parameters["batch_size"]
        seed = "" if checkpoint.train_seed is None else f" of seed {checkpoint.train_seed}"
        pools = {
            split: read(checkpoint.loaded, examples, batch_size, f"step {checkpoint.step}{seed}, {split}")
            for split, examples in self.examples.items()
        }
        pools["all"] = Representations.join(list(pools.values()))
        return pools

    @property
    def data(self) -> dict[str, Any]:
        """Its task, the numbers of examples and of different targets, and their digest, for provenance."""
        targets = {example.target for examples in self.examples.values() for example in examples}
        counts = {split: len(examples) for split, examples in self.examples.items()}
        every = [*self.training_examples, *itertools.chain.from_iterable(self.examples.values())]
        return self.context | {
            "train": len(self.training_examples),
            **counts,
            "different targets": len(targets),
            "sha256": tasks.digest(every),
        }

    @property
    def trainings(self) -> list[dict[str, Any]]:
        """Its fine-tunings, for provenance."""
        return [
            {"seed": seed, "precision": run.precision, "seconds": round(run.seconds), "digest": run.digest}
            for seed, run in self.runs.items()
        ]

    def save(self, table: pd.DataFrame, path: str, **more: Any) -> None:
        """Write a table as the CSV file ``path`` with its provenance, which says ``more`` too; not where empty."""
        if not path:
            return
        more.setdefault("model", models.describe(self.base))
        more.setdefault("training", self.trainings)
        more.setdefault("seconds", round(time.monotonic() - self.started))
        origin = results.provenance(self.parameters, device=str(self.base.device), data=self.data, **more)
        results.write(table, Path(path), origin)


def attend(loaded: LoadedModel, examples: Sequence[Example], batch_size: int, label: str) -> AttentionShares:
    """:func:`ridge_utils.attention.shares`, remembered."""

    def compute() -> AttentionShares:
        return attention.shares(loaded, examples, batch_size, label)

    return remember(AttentionShares, loaded, examples, compute, batch_size=batch_size)


#: How figures and tables call the sources.
SOURCES = {
    "synthetic": "made for this project",
    "hub": "from the Hub",
    "local": "the real set, from a local folder",
    "own": "your own file",
}


def prepare(
    parameters: Mapping[str, Any],
    base: LoadedModel | None = None,
    *,
    splits: Sequence[tasks.Split] = ("id", "ood"),
    n: int | None = 0,
) -> Study:
    """Load what a notebook's parameters name, fine-tune the model or find its fine-tunings in the cache.

    What does not fit is refused before the long work begins.

    Args:
        parameters: as every notebook explains them. Those of the fine-tuning may be missing, then the model stays
            untouched; those of the sampling, where ``n`` is given.
        base: a model to use in place of the one that ``model`` names.
        n: examples per split; 0 for what ``n_samples`` and ``n_examples`` say, None for all that there are.
    """
    started = time.monotonic()
    steps = parameters.get("steps", 0)
    pool = n
    if n == 0:
        pool = pool_size(parameters)
        statistics.check_sampling(pool, parameters["n_samples"], parameters["sampling_seeds"])
    seeds = parameters.get("training_seeds", [])
    if steps:
        check_seeds(training_seeds=seeds)
    named = ["n_samples"] if n == 0 and not parameters["n_examples"] else ["n_texts", "n_examples"]
    examples = {split: draw(parameters, split, pool, *named) for split in splits}
    training_examples = draw(parameters, "train", parameters["n_train"], "n_train") if steps else []
    if base is None:
        base = models.load(parameters["model"], dtype=parameters["dtype"], device=parameters["device"])
    runs = {}
    for seed in seeds if steps else []:
        settings = training.Settings(
            steps=steps,
            checkpoints=tuple(parameters["checkpoints"] or sorted({0, steps // 4, steps // 2, steps})),
            learning_rate=parameters["learning_rate"],
            batch_size=parameters["batch_size"],
            seed=seed,
            precision=parameters["precision"],
        )
        runs[seed] = training.finetune(base, training_examples, settings)
    return Study(dict(parameters), base, examples, training_examples, runs, started)


def draw(parameters: Mapping[str, Any], split: tasks.Split, n: int | None, *names: str) -> list[Example]:
    """Examples of the task that a notebook's parameters name; those of ``names`` say how many are asked for."""
    data_dir = parameters.get("data_dir") or None
    try:
        return tasks.load(parameters["task"], split, n, data_dir=data_dir, **parameters["task_options"])
    except TooFewExamplesError as error:
        said = " and ".join(f"{name}={parameters[name]}" for name in names if name in parameters)
        raise TooFewExamplesError(f"{error} The number comes from {said or 'the caller'}.") from None


def references(notebook: str) -> dict[str, pd.DataFrame]:
    """The tables of a notebook's reference runs, by their heading."""
    return {heading(name, origin): table for name, (table, origin) in results.references(notebook).items()}


def heading(profile: str, origin: Mapping[str, Any]) -> str:
    """How figures call a reference run: its profile's title, the numbers of samples and of training seeds."""
    parameters = origin["parameters"]
    parts = [profiles.load(profile).title]
    pools = {count for split, count in origin["data"].items() if split in ("id", "ood")}
    pool = f"{pools.pop()} a split" if len(pools) == 1 else ""
    if "texts" in origin:
        pool = f"{origin['texts']} texts"
    if "n_samples" in parameters:
        parts.append(f"n = {parameters['n_samples']}" + (f" of {pool}" if pool else ""))
    else:  # some notebooks use every example of the pool
        parts.append(f"n = {pool}" if pool else "n")
    seeds = len(parameters.get("training_seeds", [])) if parameters.get("steps") else 0
    if seeds:
        parts.append(f"{seeds} training seed{'s' if seeds > 1 else ''}")
    return ", ".join(parts)


def pool_size(parameters: Mapping[str, Any]) -> int:
    """Examples per split that the estimates draw from: ``n_examples``, or a quarter more than ``n_samples``."""
    n = parameters["n_samples"]
    return parameters["n_examples"] or n + n // 4
