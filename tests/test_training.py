import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from ridge_utils import cache, models, tasks, training
from ridge_utils.errors import InputError, StorageError
from ridge_utils.representations import encode
from ridge_utils.tasks import Example

SHORT = training.Settings(steps=6, checkpoints=(0, 2, 4, 6), batch_size=4, learning_rate=1e-3, precision="float32")


@pytest.fixture(scope="module")
def examples():
    return tasks.load("synthetic_arithmetic", "train", 20)


def weights(run):
    return {step: models.fingerprint(run.load(step).model) for step in run.steps}


@pytest.mark.slow
def test_training_lowers_the_loss_and_leaves_the_model_alone(loaded, examples):
    before = models.fingerprint(loaded.model)
    run = training.finetune(loaded, examples, dataclasses.replace(SHORT, steps=30, checkpoints=(0, 30)), progress=False)
    assert models.fingerprint(loaded.model) == before
    assert weights(run)[0] == before != weights(run)[30]
    assert run.log["loss"].iloc[-1] < run.log["loss"].iloc[0] - 0.5


def test_the_loss_is_the_cross_entropy_of_the_answers_tokens(llama, examples):
    """Against a loop over the answers, one prompt at a time, without padding or dropped logits."""
    rows = [encode(llama, example) for example in examples[:5]]
    expected, count = 0.0, 0
    with torch.no_grad():
        for prompt, target in rows:
            logits = llama.model(torch.tensor([prompt + target])).logits[0]
            for offset, token in enumerate(target):
                expected += cross_entropy(logits[len(prompt) - 1 + offset], torch.tensor(token)).item()
                count += 1
        got = llama.model(**training._collate(rows, llama)).loss.item()
    assert got == pytest.approx(expected / count, abs=1e-5)


def test_the_first_step_is_adamw_on_that_loss(llama, examples):
    """One step of the Trainer against torch's own optimiser on the same batch."""
    settings = training.Settings(
        steps=1, checkpoints=(1,), batch_size=20, learning_rate=1e-3, precision="float32", seed=3
    )
    run = training.finetune(llama, examples, settings, progress=False)
    mine = models.load("random:llama", device="cpu").model.train()
    optimiser = torch.optim.AdamW(mine.parameters(), lr=1e-3, weight_decay=0.0)
    mine(**training._collate([encode(llama, e) for e in examples], llama)).loss.backward()
    torch.nn.utils.clip_grad_norm_(mine.parameters(), 1.0)
    optimiser.step()
    trained = dict(run.load(1).model.named_parameters())
    # Adam's first step is +-lr wherever the gradient is not zero but for rounding: compare where it is well above.
    for name, parameter in mine.named_parameters():
        clear = parameter.grad.abs() > 1e-5
        torch.testing.assert_close(trained[name][clear], parameter[clear], atol=1e-5, rtol=0)


def test_a_second_call_trains_nothing(llama, examples, monkeypatch):
    first = training.finetune(llama, examples, SHORT, progress=False)
    monkeypatch.setattr(training, "_train", None)  # calling it would raise
    second = training.finetune(llama, examples, SHORT, progress=False)
    assert second.folder == first.folder
    assert weights(second) == weights(first)
    assert second.log.equals(first.log)


@pytest.mark.slow
def test_whatever_shapes_a_run_is_in_its_digest(llama, examples):
    def digest(model=llama, data=examples, **changes):
        settings = dataclasses.replace(SHORT, **({"checkpoints": (0,)} | changes))
        return training.finetune(model, data, settings, progress=False).digest

    digests = [
        digest(),
        digest(seed=1),
        digest(learning_rate=2e-3),
        digest(batch_size=3),
        digest(steps=7),
        digest(checkpoints=(0, 1)),
        digest(precision="bfloat16"),
        digest(data=examples[:-1]),
        digest(data=[dataclasses.replace(examples[0], target="0"), *examples[1:]]),
        digest(model=models.load("random:qwen2", device="cpu")),
    ]
    assert len(set(digests)) == len(digests)
    assert digest() == digests[0]


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights_and_another_does_not(llama, examples, own_cache):
    first = weights(training.finetune(llama, examples, SHORT, progress=False))
    for path in (own_cache / "training").iterdir():
        if path.is_dir():
            path.rename(path.with_name("aside"))
    assert weights(training.finetune(llama, examples, SHORT, progress=False)) == first
    other = weights(training.finetune(llama, examples, dataclasses.replace(SHORT, seed=1), progress=False))
    assert other[6] != first[6]


KILLED = """
import sys
from ridge_utils import models, tasks, training
from tests.test_training import SHORT
class Stop(training._Keeper):
    def on_step_end(self, args, state, control, **rest):
        super().on_step_end(args, state, control, **rest)
        if state.global_step == 5:
            print("at step 5", flush=True)
            import time; time.sleep(60)
training._Keeper = Stop
model = models.load("random:gpt2", device="cpu")
training.finetune(model, tasks.load("synthetic_arithmetic", "train", 20), SHORT, progress=False)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_weights(examples, own_cache, monkeypatch, tmp_path):
    gpt2 = models.load("random:gpt2", device="cpu")  # has dropout, so the generator's state must be restored too
    monkeypatch.setenv(cache.ENVIRONMENT_VARIABLE, str(tmp_path))
    whole = weights(training.finetune(gpt2, examples, SHORT, progress=False))
    monkeypatch.setenv(cache.ENVIRONMENT_VARIABLE, str(own_cache))
    process = subprocess.Popen([sys.executable, "-c", KILLED], stdout=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout.readline() == "at step 5\n"
    process.send_signal(signal.SIGKILL)
    process.communicate()
    (folder,) = [p for p in (own_cache / "training").iterdir() if p.is_dir()]
    assert not (folder / "run.json").exists()
    # What a kill in the middle of writing leaves: files without a valid manifest.
    (folder / "checkpoint-6").mkdir()
    (folder / "checkpoint-6" / "model.safetensors").write_bytes(b"half")
    seen = []
    monkeypatch.setattr(
        training._Keeper, "on_train_begin", lambda self, a, state, c, **_: seen.append(state.global_step)
    )
    assert weights(training.finetune(gpt2, examples, SHORT, progress=False)) == whole
    assert seen == [4], "it should have gone on from the checkpoint at step 4"
    assert sorted(p.name for p in folder.iterdir()) == ["checkpoint-2", "checkpoint-4", "checkpoint-6", "run.json"]
    kept = {p.name for step in (2, 4, 6) for p in (folder / f"checkpoint-{step}").iterdir()}
    assert kept == {"config.json", "model.safetensors", "manifest.json"}


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["checkpoint-2", "optimizer"])
def test_a_killed_run_with_a_gap_starts_again(llama, examples, own_cache, broken):
    """A resume must not skip an earlier checkpoint that is gone, nor trust an optimiser that nobody sealed."""
    whole = weights(training.finetune(llama, examples, SHORT, progress=False))
    for path in (own_cache / "training").iterdir():
        shutil.rmtree(path) if path.is_dir() else None
    killed = KILLED.replace("gpt2", "llama")
    process = subprocess.Popen([sys.executable, "-c", killed], stdout=subprocess.PIPE, text=True, env=os.environ)
    assert process.stdout.readline() == "at step 5\n"
    process.kill()
    process.communicate()
    (folder,) = [p for p in (own_cache / "training").iterdir() if p.is_dir()]
    if broken == "checkpoint-2":
        shutil.rmtree(folder / "checkpoint-2")
    else:
        training._strip(folder / "checkpoint-4", "")
        (folder / "checkpoint-4" / "optimizer.pt").write_bytes(b"half")
    run = training.finetune(llama, examples, SHORT, progress=False)
    assert weights(run) == whole
    assert weights(training.finetune(llama, examples, SHORT, progress=False)) == whole


@pytest.mark.slow
def test_a_damaged_checkpoint_is_found_said_and_trained_again(llama, examples, caplog):
    run = training.finetune(llama, examples, SHORT, progress=False)
    before = weights(run)
    path = run.folder / "checkpoint-4" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(bytes(content))
    again = training.finetune(llama, examples, SHORT, progress=False)
    assert "checkpoint-4 is damaged (the SHA-256 of model.safetensors" in caplog.text
    assert weights(again) == before
    (run.folder / "run.json").write_text("{")
    assert weights(training.finetune(llama, examples, SHORT, progress=False)) == before
    assert "cannot be read" in caplog.text


@pytest.mark.slow
def test_another_process_waits_instead_of_training_twice(llama, examples, own_cache):
    folder = training.finetune(llama, examples, SHORT, progress=False).folder
    shutil.rmtree(folder)
    code = KILLED.replace("if state.global_step == 5", "if False")
    with cache.lock(folder):
        process = subprocess.Popen([sys.executable, "-c", code.replace("gpt2", "llama")], env=os.environ)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(8)
        assert not (folder / "run.json").exists()
    assert process.wait(60) == 0
    assert json.loads((folder / "run.json").read_text())["checkpoints"] == [2, 4, 6]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs Linux's /dev/full")
def test_a_full_disk_is_one_sentence_and_a_later_call_recovers(llama, examples, monkeypatch):
    save = torch.save
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", lambda content, _path, *a, **k: save(content, "/dev/full"))
        with pytest.raises(StorageError, match=r"^Cannot write to .*lack of space.*RIDGE_CACHE"):
            training.finetune(llama, examples, SHORT, progress=False)
    assert training.finetune(llama, examples, SHORT, progress=False).load(6)


@pytest.mark.parametrize(
    "changes",
    [
        *[{"steps": -1}, {"checkpoints": (0, 9)}, {"checkpoints": ()}],
        *[{"learning_rate": 0.0}, {"batch_size": 0}, {"precision": "half"}],
    ],
)
def test_settings_out_of_range(changes):
    with pytest.raises(InputError, match=next(iter(changes))):
        dataclasses.replace(SHORT, **changes)


def test_data_that_do_not_fit(llama, examples):
    with pytest.raises(InputError, match="no examples to train on"):
        training.finetune(llama, [], SHORT)
    with pytest.raises(InputError, match="have 1050 tokens"):
        training.finetune(llama, [Example("a" * 1000, "b" * 50, "train", "own")], SHORT)
    run = training.finetune(llama, examples, dataclasses.replace(SHORT, checkpoints=(0,)))
    with pytest.raises(InputError, match=r"no checkpoint at step 3; there are \[0\]"):
        run.load(3)


def test_auto_precision_follows_the_hardware(monkeypatch):
    cpu = torch.device("cpu")
    for capabilities, expected in (({"avx512_bf16": True}, "bfloat16"), ({"avx2": True}, "float32")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda c=capabilities: c)
        assert training.resolve_precision("auto", cpu) == expected
    assert training.resolve_precision("bfloat16", cpu) == "bfloat16"


def test_a_run_of_steps_zero_is_the_untouched_model(llama, examples):
    started = time.monotonic()
    run = training.finetune(llama, examples, training.Settings(steps=0, checkpoints=(0,)))
    assert run.load(0) is llama
    assert time.monotonic() - started < 5
