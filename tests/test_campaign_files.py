"""Damaged files: a part of the campaign with a fixed seed; and pickles that a resumed run would meet."""

import logging
import pickle
import random
import shutil
from pathlib import Path

import pytest

from ridge_utils import cache, models, tasks, training
from tests.campaign import files
from tests.campaign.cases import faults
from tests.campaign.changes import Hostile


@pytest.mark.slow
def test_damage_is_found_or_harmless():
    assert not [fault for _, fault in faults(files.cases(random.Random(0), 60)) if fault]


@pytest.mark.slow
def test_no_pickle_of_a_checkpoint_runs(own_cache, tmp_path, monkeypatch, caplog):
    """Somebody who can write into the cache can write its manifest as well."""
    loaded, marker = models.load("random:gpt2-2x16", device="cpu"), tmp_path / "marker"
    examples = tasks.load("synthetic_arithmetic", "id", 6, 0)
    monkeypatch.setattr(training, "_strip", lambda *_: None)
    monkeypatch.setattr(training.cache, "write_text", _no_record)
    with pytest.raises(KeyboardInterrupt):
        training.finetune(loaded, examples, files.SETTINGS, progress=False)
    monkeypatch.undo()
    monkeypatch.setenv(cache.ENVIRONMENT_VARIABLE, str(own_cache))
    (checkpoint,) = own_cache.glob("training/*/checkpoint-4")
    pickles = [path for path in checkpoint.iterdir() if path.suffix in (".pt", ".pth", ".bin")]
    assert len(pickles) >= 3
    whole = shutil.copytree(checkpoint, tmp_path / "whole")
    for path in pickles:
        cache.remove(checkpoint.parent)
        shutil.copytree(whole, checkpoint)
        path.write_bytes(pickle.dumps(Hostile(str(marker))))
        cache.seal(checkpoint)
        with caplog.at_level(logging.INFO):
            try:
                training.finetune(loaded, examples, files.SETTINGS, progress=False)
            except Exception as error:  # refused, in whatever words
                assert not isinstance(error, AssertionError)
        assert not marker.exists(), path.name


_write_text = cache.write_text


def _no_record(path: Path, text: str) -> None:
    if path.name == "run.json":
        raise KeyboardInterrupt
    _write_text(path, text)
