"""Fine-tuning on a task, with checkpoints that are stored under a digest of everything that shaped them."""

import copy
import inspect
import json
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import pandas as pd
import torch
import transformers
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from ridge_utils import cache
from ridge_utils.errors import InputError, at_least, check_checkpoints, finite_and_positive
from ridge_utils.models import LoadedModel, quiet, title
from ridge_utils.representations import encode_whole, pad
from ridge_utils.tasks import Example

log = logging.getLogger(__name__)

Precision = Literal["auto", "float32", "bfloat16"]

#: Part of the digest: raise it when the procedure below changes what comes out.
_RECIPE = 1
_RUN = "run.json"
_ELAPSED = "elapsed.json"  # seconds of training up to a checkpoint
_IGNORED = -100  # the label that transformers' loss leaves out


@dataclass(frozen=True)
class Settings:
    """How a model is fine-tuned: AdamW without weight decay, gradient norm clipped at 1, loss on the answer alone."""

    #: optimiser steps
    steps: int = 100
    #: steps after which a checkpoint is kept; 0 is the untouched model
    checkpoints: tuple[int, ...] = (0, 25, 50, 100)
    #: peak learning rate, reached after a tenth of the steps and falling linearly to 0
    learning_rate: float = 5e-5
    #: examples per step
    batch_size: int = 16
    #: seed of the order of the examples and of dropout
    seed: int = 0
    #: ``float32``, ``bfloat16`` (autocast; the weights stay float32), or ``auto``: bfloat16 where the hardware has it
    precision: Precision = "auto"

    def __post_init__(self) -> None:
        """Refuse settings out of range."""
        at_least(0, steps=self.steps)
        check_checkpoints(self.steps, self.checkpoints)
        finite_and_positive(learning_rate=self.learning_rate)
        check_step(self.batch_size, self.precision)


@dataclass(frozen=True)
class TrainingRun:
    """A finished fine-tuning of ``base``: its checkpoints, which are in ``folder``, and its log."""

    base: LoadedModel
    folder: Path
    #: the steps at which there is a checkpoint, ascending
    steps: tuple[int, ...]
    #: one row per logged step, with ``step`` and ``loss``, the mean over the steps since the row before in nats a token
    log: pd.DataFrame
    #: digest of the settings, the data, the starting weights and the library versions
    digest: str
    #: the precision that ``auto`` stood for
    precision: str
    #: seconds that the training took when it was done
    seconds: float

    def load(self, step: int) -> LoadedModel:
        """The model as it was after ``step`` steps; step 0 is the untouched one."""
        if step not in self.steps:
            raise InputError(f"There is no checkpoint at step {step}; there are {list(self.steps)}.")
        return self.base if step == 0 else self.base.with_weights(_checkpoint(self.folder, step))


def finetune(
    loaded: LoadedModel, examples: Sequence[Example], settings: Settings, progress: bool = True
) -> TrainingRun:
    """Fine-tune a copy of ``loaded`` on the targets of ``examples``, or find the run in the cache.

    The cross-entropy is taken over all tokens of each target and over nothing else. The order of the examples is drawn
    anew in every epoch. A run that was killed goes on from its last whole checkpoint; checkpoints are checked against
    their SHA-256 when they are read, and a damaged run is trained again.
    """
    if loaded.is_spread:
        raise InputError(
            f"Model {loaded.name!r} is spread over several devices and cannot be fine-tuned so: load it on one "
            "(device='cuda'), or set steps=0 to leave it untouched."
        )
    if not examples and any(settings.checkpoints):
        raise InputError("There are no examples to train on.")
    encoded = encode_whole(loaded, examples)
    steps = tuple(sorted(set(settings.checkpoints)))
    precision = resolve_precision(settings.precision, loaded.device)
    shaped_by = {
        "recipe": _RECIPE,
        "settings": asdict(settings) | {"checkpoints": steps, "precision": precision},
        "data": cache.digest({"encoded": encoded}),
        "weights": loaded.weights_sha256,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "device": loaded.device.type,
    }
    digest = cache.digest(shaped_by)
    folder = cache.directory() / "training" / digest
    wanted = [step for step in steps if step > 0]
    with cache.lock(folder):
        record = _record(folder, wanted, shaped_by)
        if record is None and wanted:
            record = _train(loaded, encoded, settings, precision, folder, wanted, shaped_by, progress)
    losses = pd.DataFrame(record["log"] if record else [], columns=["step", "loss"])
    return TrainingRun(loaded, folder, steps, losses, digest, precision, record["seconds"] if record else 0.0)


def check_step(batch_size: int, precision: str) -> None:
    """Refuse a batch size below 1 or an unknown precision."""
    at_least(1, batch_size=batch_size)
    if precision not in get_args(Precision):
        raise InputError(f"Unknown precision {precision!r}; choose one of {', '.join(get_args(Precision))}.")


def make_trainer(
    model: PreTrainedModel,
    loaded: LoadedModel,
    encoded: Sequence[tuple[list[int], list[int]]],
    settings: Settings,
    precision: str,
    folder: Path,
    callback: TrainerCallback,
) -> Trainer:
    """Transformers' Trainer, set up as every fine-tuning of this project is; it saves nothing by itself.

    ``model``, a copy of the one in ``loaded``, is trained in place. ``encoded`` are the token ids of each prompt and of
    its target, and the checkpoints of ``callback`` go to ``folder``.
    """
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=settings.steps // 10,
        weight_decay=0.0,
        max_grad_norm=1.0,
        optim="adamw_torch",
        seed=settings.seed,
        data_seed=settings.seed,
        bf16=precision == "bfloat16",
        use_cpu=loaded.device.type == "cpu",
        save_strategy="no",  # a callback saves at the chosen steps
        logging_strategy="steps",
        logging_steps=max(1, min(10, settings.steps // 10)),
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
    )
    if arguments.device.type == "cuda":
        # With several GPUs Trainer would split batches among them: another training under the same digest.
        torch.cuda.set_device(loaded.device)
        arguments._n_gpu = 1
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=encoded,  # type: ignore[arg-type]  # any sized sequence will do
        data_collator=lambda rows: _collate(rows, loaded),
        callbacks=[callback],
    )
    # Trainer prints each logged line by itself; the record keeps them.
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def resolve_precision(precision: Precision, device: torch.device) -> str:
    """What ``auto`` stands for on a device: bfloat16 where its arithmetic is in hardware, else float32."""
    if precision != "auto":
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if device.type == "cpu":
        has = torch.cpu.get_capabilities()
        return "bfloat16" if has.get("avx512_bf16") or has.get("amx_bf16") else "float32"
    return "float32"


def _checkpoint(folder: Path, step: int) -> Path:
    return folder / f"checkpoint-{step}"  # transformers' own name for it


def _record(folder: Path, wanted: Sequence[int], shaped_by: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a finished run whose wanted checkpoints are all whole, else None."""
    path = folder / _RUN
    if not path.exists():
        return None  # a killed run goes on, see _resumable
    try:
        if not path.is_file():
            raise ValueError("it is no file")
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.pop("digest") != cache.digest(record) or record["shaped_by"] != json.loads(json.dumps(shaped_by)):
            raise ValueError("it is not as it was written, or that of another run")
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        log.warning("The training record %s cannot be read (%s); the run is trained again.", path, error)
        return None
    for step in wanted:
        if problem := cache.damage(_checkpoint(folder, step), ["config.json"]):
            log.warning("The checkpoint %s is damaged (%s); it is trained again.", _checkpoint(folder, step), problem)
            return None
    return record


def _train(
    loaded: LoadedModel,
    encoded: list[tuple[list[int], list[int]]],
    settings: Settings,
    precision: str,
    folder: Path,
    wanted: Sequence[int],
    shaped_by: dict[str, Any],
    progress: bool,
) -> dict[str, Any]:
    with cache.storage_errors(folder):
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        cache.remove(folder / _RUN)
        resume = _resumable(folder, wanted)
        if resume:
            log.info("The fine-tuning goes on from step %s of %d.", resume.name.rpartition("-")[2], wanted[-1])
        elif any(_checkpoint(folder, step).exists() for step in wanted):
            log.warning("The checkpoints in %s are not those of a whole run; it is trained again.", folder)
        earlier = json.loads((resume / _ELAPSED).read_text()) if resume else 0.0
        keeper = _Keeper(folder, title(loaded.name), wanted, earlier, progress)
        trainer = make_trainer(copy.deepcopy(loaded.model), loaded, encoded, settings, precision, folder, keeper)
        with torch.random.fork_rng(devices=[]), quiet():
            trainer.train(resume_from_checkpoint=str(resume) if resume else None)
        record = {
            "shaped_by": shaped_by,
            "checkpoints": list(wanted),
            "log": [{"step": row["step"], "loss": row["loss"]} for row in trainer.state.log_history if "loss" in row],
            "threads": torch.get_num_threads(),
            "seconds": keeper.elapsed(),
        }
        for step in wanted:
            _strip(_checkpoint(folder, step), keeper.model)
        cache.write_text(folder / _RUN, json.dumps(record | {"digest": cache.digest(record)}, indent=1))
    return record


class _Keeper(TrainerCallback):
    """Saves at the chosen steps, seals what was saved, and shows the progress."""

    def __init__(self, folder: Path, model: str, wanted: Sequence[int], elapsed: float, progress: bool) -> None:
        self.folder, self.model, self.wanted = folder, model, sorted(wanted)
        self.started = time.monotonic() - elapsed
        self.bar = tqdm(total=self.wanted[-1], desc="fine-tuning", unit="step", disable=not progress)

    def elapsed(self) -> float:
        """Seconds of training so far, those before an interruption included."""
        return time.monotonic() - self.started

    def on_train_begin(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)

    def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
        self.bar.update(state.global_step - self.bar.n)
        control.should_save = state.global_step in self.wanted
        control.should_training_stop = state.global_step >= self.wanted[-1]

    def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

    def on_save(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        checkpoint = _checkpoint(self.folder, state.global_step)
        cache.write_text(checkpoint / _ELAPSED, json.dumps(self.elapsed()))
        cache.seal(checkpoint, model=self.model)
        # Only the newest checkpoint needs the optimiser's state, twice the size of the weights, for resuming.
        for step in self.wanted:
            if step < state.global_step:
                _strip(_checkpoint(self.folder, step), self.model)

    def on_train_end(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        self.bar.close()


def _resumable(folder: Path, wanted: Sequence[int]) -> Path | None:
    """The newest checkpoint that training can go on from, all before it being whole; what is not whole is removed."""
    newest, unbroken = None, True
    for step in wanted:
        path = _checkpoint(folder, step)
        problem = cache.damage(path)
        if problem and path.exists():
            log.warning("The checkpoint %s is not whole (%s); it is removed.", path, problem)
            cache.remove(path)
        unbroken = unbroken and not problem
        if unbroken and "optimizer.pt" in cache.listed(path):
            newest = path
    return newest


def _strip(checkpoint: Path, model: str) -> None:
    """Leave the weights alone in a whole checkpoint."""
    # The manifest first: a kill in between leaves a whole checkpoint with files that nobody lists.
    weights = [path.name for path in checkpoint.iterdir() if path.name == "config.json" or "safetensors" in path.name]
    cache.seal(checkpoint, weights, model=model)
    for path in checkpoint.iterdir():
        if path.name not in weights and path.name != cache.MANIFEST:
            path.unlink()


def _collate(rows: Sequence[tuple[list[int], list[int]]], loaded: LoadedModel) -> dict[str, Any]:
    """A batch whose labels, and whose logits, cover the answers only.

    Logits over a vocabulary are a fifth of the cost of a small model's step, and all but a few positions of them would
    be thrown away; ``logits_to_keep`` keeps the positions from the shortest prompt's last token on.
    """
    ids, mask = pad([prompt + target for prompt, target in rows], loaded)
    labels = torch.full_like(ids, _IGNORED)
    for row, (prompt, target) in enumerate(rows):
        labels[row, len(prompt) : len(prompt) + len(target)] = ids[row, len(prompt) : len(prompt) + len(target)]
    batch: dict[str, Tensor | int] = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    if "logits_to_keep" in inspect.signature(loaded.model.forward).parameters:
        first = min(len(prompt) for prompt, _ in rows) - 1
        batch["labels"] = labels[:, first:]
        batch["logits_to_keep"] = ids.shape[1] - first
    return batch
