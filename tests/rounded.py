"""How far a profile moves when the weights are rounded as in GGUF files, on the model whose unrounded ones are here.

``python -m tests.rounded FOLDER`` keeps the profiles of the untouched embedded model, as it is and rounded, on
synthetic arithmetic and on the real CLUTRR in FOLDER, in ``results/rounded.csv`` (half an hour on one thread).

Every matrix is rounded in blocks of 32 to 4 or 5 bits and a scale, the embedding as well. The files of the embedded
models are of kinds that round less for their size (Q4_K and Q6_K) or of 5 and 8 bits.
"""

import copy
import sys
import time

import pandas as pd
import torch
from gguf import GGMLQuantizationType, quants
from torch import nn

from ridge_utils import models, results, study
from ridge_utils.audit import anatomy
from ridge_utils.models import LoadedModel

FORMATS = ("Q4_0", "Q5_0")
TASKS = ("synthetic_arithmetic", "clutrr")
#: As the reference runs of the anatomy's notebook.
SETTINGS = {"sampling_seeds": [0, 1, 2, 3, 42], "n_shuffles": 10, "exact_up_to": 200}
PARAMETERS = {"model": "smollm2-135m", "n_examples": 500, "batch_size": 16, "task_options": {}, "steps": 0}


def rounded(loaded: LoadedModel, kind: str) -> LoadedModel:
    """A copy whose matrices were rounded to a format of GGUF files and back."""
    model = copy.deepcopy(loaded.model)
    number = GGMLQuantizationType[kind]
    with torch.no_grad():
        for weight in model.parameters():  # a matrix that two modules share comes once
            if weight.ndim == 2:
                blocks = quants.quantize(weight.numpy(), number)
                weight.copy_(torch.from_numpy(quants.dequantize(blocks, number)))
    return models.assemble(loaded.name, model, loaded.tokenizer)


def change(loaded: LoadedModel, other: LoadedModel) -> float:
    """Root mean square change of the matrices of the blocks over that of their entries."""
    squares = [
        (float((new - old).square().sum()), float(old.square().sum()))
        for old, new in zip(matrices(loaded.blocks), matrices(other.blocks), strict=True)
    ]
    moved, whole = map(sum, zip(*squares, strict=True))
    return (moved / whole) ** 0.5


def matrices(module: nn.Module) -> list[torch.Tensor]:
    """The matrices among its parameters."""
    return [weight.detach() for weight in module.parameters() if weight.ndim == 2]


def main(data_dir: str) -> None:
    """Measure and keep the table."""
    torch.set_num_threads(1)
    started, tables, changes = time.monotonic(), [], {}
    loaded = models.load(PARAMETERS["model"], device="cpu")
    for kind in ("", *FORMATS):
        variant = rounded(loaded, kind) if kind else loaded
        changes |= {kind: round(change(loaded, variant), 4)} if kind else {}
        for task in TASKS:
            parameters = PARAMETERS | {
                "task": task,
                "data_dir": data_dir if task == "clutrr" else "",
                "dtype": "float32",
            }
            work = study.prepare(parameters, variant, n=PARAMETERS["n_examples"])
            pool = work.pools(next(work.checkpoints()))["all"]
            measured = anatomy.profile(pool, work.context | {"split": "all", "step": 0, "train_seed": None}, **SETTINGS)
            tables.append(measured.assign(weights=kind or "as published"))
            print(f"{kind or 'as published'}, {task}: {time.monotonic() - started:.0f} s", flush=True)
    kept = pd.concat(tables, ignore_index=True)
    kept = kept[~kept["quantity"].isin(["alignment", "plug_in", "plug_in_null"])]
    origin = results.provenance(
        PARAMETERS | SETTINGS | {"tasks": TASKS}, changes=changes, seconds=round(time.monotonic() - started)
    )
    results.write(kept, results.FOLDER / "rounded.csv", origin)


if __name__ == "__main__":
    main(sys.argv[1])
