"""``ridge doctor``: what is here, and what can be reached."""

import json
import shutil
import subprocess
import sys
from typing import Any

import yaml

from ridge_utils import cache, embedded, profiles
from ridge_utils.errors import InputError
from ridge_utils.run import caches

#: Seconds that the package index has to answer.
_WAIT = 3


def main(as_json: bool) -> int:
    """Print :func:`report`, as JSON or for reading."""
    found = report()
    print(json.dumps(found, indent=1) if as_json else yaml.safe_dump(found, sort_keys=False).rstrip())
    return 0


def report() -> dict[str, Any]:
    """Versions, machine, cache, models and network."""
    import huggingface_hub
    import psutil
    import torch

    from ridge_utils import results

    made, folder = results.provenance({}), cache.directory()
    held = caches.entries()
    cards = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    there = next(path for path in (folder, *folder.parents) if path.exists())
    try:
        hub = [repo.repo_id for repo in huggingface_hub.scan_cache_dir().repos if repo.repo_type == "model"]
    except huggingface_hub.CacheNotFound:
        hub = []
    return {
        "ridge": {
            "installed from": "a wheel" if profiles.INSTALLED else f"the checkout {profiles.ROOT}",
            "commit": made["commit"],
            "environment": sys.prefix,
        },
        "versions": made["versions"],
        "machine": {key: value for key, value in made["machine"].items() if key != "accelerator"}
        | {
            "memory (GB)": _gigabytes(psutil.virtual_memory().total),
            "free memory (GB)": _gigabytes(psutil.virtual_memory().available),
        },
        "devices": ["cpu", *(["mps"] if torch.backends.mps.is_available() else []), *cards],
        "cache": {
            "folder": str(folder),
            "entries": len(held),
            "size (GB)": _gigabytes(sum(entry.bytes for entry in held)),
            "free on the disk (GB)": _gigabytes(shutil.disk_usage(there).free),
        },
        "models": {name: "here" if embedded.is_here(name) else f"ridge setup {name}" for name in embedded.MODELS}
        | dict.fromkeys(sorted(hub), "in the Hub's cache"),
        "network": {"Hub": _hub_answers(), "package index": _index_answers()},
    }


def _gigabytes(number: int) -> float:
    return round(number / 1e9, 2)


def _hub_answers() -> bool:
    from ridge_utils import names

    try:
        return names.hub_answers("gpt2")
    except InputError:
        return False


def _index_answers() -> bool:
    package = embedded.MODELS[embedded.DEFAULT].package.partition("==")[0]
    command = [sys.executable, "-m", "pip", "index", "versions", package, "--retries", "0", "--timeout", str(_WAIT)]
    try:
        return subprocess.run(command, capture_output=True, timeout=5 * _WAIT, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False
