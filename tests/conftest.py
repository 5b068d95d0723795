import pytest
from huggingface_hub import constants

from ridge_utils import cache, models


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
