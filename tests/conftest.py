import os
from pathlib import Path

import pytest
from huggingface_hub import constants

from ridge_utils import cache, models, tasks


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Every test has a cache of its own, and no test can reach a network through the Hub client."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv(cache.ENVIRONMENT_VARIABLE, str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # for the processes that a test starts
    return folder


@pytest.fixture(scope="session", params=["random:gpt2", "random:qwen2", "random:llama"])
def loaded(request):
    return models.load(request.param, device="cpu")


@pytest.fixture(scope="session")
def llama():
    return models.load("random:llama", device="cpu")


@pytest.fixture(scope="session")
def model():
    """The smallest model; modules that need another have their own."""
    return models.load("random:gpt2-2x16", device="cpu")


@pytest.fixture(scope="session")
def examples():
    return {split: tasks.load("synthetic_arithmetic", split, 7) for split in ("id", "ood")}


@pytest.fixture(scope="session")
def real_data():
    """The folder of the real data sets: RIDGE_DATA, or data/ in the checkout; without one the test is skipped."""
    folder = Path(os.environ.get("RIDGE_DATA") or Path(__file__).resolve().parent.parent / "data")
    if not folder.is_dir():
        pytest.skip("no real data here: set RIDGE_DATA to their folder")
    return folder
