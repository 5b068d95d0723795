r"""Residual scales trained together with the weights, from the first step of a fine-tuning on.

The paper fits its scales :math:`\beta_l` after training, to frozen weights; a reviewer asked for scales that are
learned jointly. The fine-tuning is that of :mod:`ridge_utils.training`, in the same order of the examples, with one
more group of parameters: with a learning rate of almost 0 for the scales it gives the same weights.
"""

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm
from transformers import TrainerCallback

from ridge_utils import models, training
from ridge_utils.errors import InputError
from ridge_utils.models import LoadedModel
from ridge_utils.representations import encode_whole
from ridge_utils.residual_scaling import evaluate, scaled
from ridge_utils.tasks import Example


@dataclass(frozen=True)
class JointFit:
    """Scales and weights trained together, and how they predict N other examples."""

    #: beta_1 to beta_L after the last step, each at least 0, shape (blocks,), float64
    scales: Tensor
    #: the loss at each logged step, nats a target token, float64
    losses: Tensor
    #: whether the first target token of each evaluated example is the likeliest one, shape (N,), bool
    correct: Tensor
    #: its negative log-probability, nats, shape (N,), float64
    cross_entropy: Tensor


def fit(
    loaded: LoadedModel,
    examples: Sequence[Example],
    evaluated: Sequence[Example],
    settings: training.Settings,
    scale_learning_rate: float = 0.01,
    progress: bool | str = True,
) -> JointFit:
    """Fine-tune a copy of the model with one factor a block trained beside its weights.

    Every factor starts at 1 and is set to 0 where a step makes it negative. Its learning rate rises and falls with that
    of the weights, to a peak of ``scale_learning_rate``, and Adam moves a factor by about that much a step; the
    clipping of the gradient leaves the factors out. The model after the last step, with its factors, is evaluated on
    ``evaluated``; the settings' ``checkpoints`` are not used.
    """
    encoded = encode_whole(loaded, examples)
    trained = models.assemble(loaded.name, copy.deepcopy(loaded.model), loaded.tokenizer)
    scales = nn.Parameter(torch.ones(len(trained.blocks), device=trained.device))
    precision = training.resolve_precision(settings.precision, loaded.device)
    label = f"joint scales, {progress}" if isinstance(progress, str) else "joint scales"
    keeper = _NotNegative(scales, tqdm(total=settings.steps, desc=label, unit="step", disable=not progress))
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]), models.quiet():
        trainer = training.make_trainer(trained.model, trained, encoded, settings, precision, Path(folder), keeper)
        trainer.create_optimizer().add_param_group({"params": [scales], "lr": scale_learning_rate, "weight_decay": 0.0})
        with keeper.bar, scaled(trained, scales):
            trainer.train()
        # In bfloat16 accelerate has wrapped the model's forward; what is evaluated is the model itself.
        trainer.accelerator.unwrap_model(trained.model, keep_fp32_wrapper=False)
    if not bool(scales.isfinite().all()):
        raise InputError(
            f"A factor is not finite after {settings.steps} steps: lower scale_learning_rate={scale_learning_rate:g} "
            f"or learning_rate={settings.learning_rate:g}."
        )
    trained.model.eval()
    evaluation = evaluate(trained, evaluated, scales.detach(), settings.batch_size, progress and f"{label}, evaluation")
    losses = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    return JointFit(
        scales.detach().cpu().double(),
        torch.tensor(losses, dtype=torch.float64),
        evaluation.correct,
        evaluation.cross_entropy,
    )


class _NotNegative(TrainerCallback):
    """Keeps the factors at 0 or above, and shows the progress."""

    def __init__(self, scales: nn.Parameter, bar: "tqdm[Any]") -> None:
        self.scales, self.bar = scales, bar

    def on_step_end(self, _args: Any, _state: Any, _control: Any, **_: Any) -> None:
        with torch.no_grad():
            self.scales.clamp_(min=0)
        self.scales.grad = None  # Trainer clears the gradients of its model's own parameters
        self.bar.update()

    def on_log(self, _args: Any, _state: Any, _control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        if logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{float(logs['loss']):.3f}")
