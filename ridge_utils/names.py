"""What a model's name says, and whether the Hub can be asked about it; known without loading torch."""

import logging
import os
import re
import stat
import threading
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, constants, try_to_load_from_cache
from huggingface_hub import errors as hub_errors

from ridge_utils import embedded
from ridge_utils.errors import InputError, named, shown

log = logging.getLogger(__name__)

EMBEDDED = embedded.DEFAULT
#: How the name of a model with random weights begins.
PREFIX = "random:"
#: How such a model's architecture is written.
FAMILIES = {"gpt2": "GPT-2", "qwen2": "Qwen2", "llama": "Llama", "mamba": "Mamba"}
#: Seconds that the Hub has to answer; its own client would try for a minute.
_WAIT = int(os.environ.get("HF_HUB_ETAG_TIMEOUT") or 3)

_TRUNCATED = re.compile(r"\[:([0-9]{1,9})\]\Z")


def split(name: str) -> tuple[str, int | None]:
    """A model's name without ``[:k]`` at its end, and k, or None if it has none."""
    cut = _TRUNCATED.search(name)
    return (name[: cut.start()], int(cut.group(1))) if cut else (name, None)


def title(name: str) -> str:
    """How tables call a model: its name, or a folder's or file's name without the folders before it."""
    whole, _ = split(name)
    short = Path(whole).expanduser().resolve().name if is_folder(whole) or is_gguf(whole) else whole
    return short + name[len(whole) :]


def display_name(name: str) -> str:
    """A model's name as its makers write it, for prose and figures: ``"Qwen2.5-0.5B"`` for ``"Qwen/Qwen2.5-0.5B"``.

    Tables keep :func:`title`, which tells two makers' models of one name apart.
    """
    whole, blocks = split(name)
    if whole.startswith(PREFIX):
        family, _, shape = whole.removeprefix(PREFIX).partition("-")
        short = " ".join(filter(None, [FAMILIES.get(family, family), shape.replace("x", " × "), "from scratch"]))
    else:
        short = embedded.MODELS[whole].title if whole in embedded.MODELS else title(whole).rpartition("/")[2]
    return short if blocks is None else f"{short} (first {blocks} of its blocks)"


def is_folder(name: str) -> bool:
    """Whether a name is that of a folder; without a separator it is the Hub's, whatever lies here under that name."""
    return lies_here(name) and (Path(name).name != name or name == "~")


def is_gguf(name: str) -> bool:
    """Whether a name is that of a GGUF file: it ends so, or names a path at which there is something but a folder."""
    if name.lower().endswith(".gguf"):
        return True
    try:
        return Path(name).name != name and Path(name).expanduser().exists() and not is_folder(name)
    except (OSError, RuntimeError, ValueError):
        return False


def require_gguf(path: Path) -> None:
    """Refuse what is no regular file that begins as a GGUF file does; of a pipe or a device nothing is read."""
    where = f"The model's file {named(str(path))}"
    try:
        kind = path.stat().st_mode  # a link's target's
        if not stat.S_ISREG(kind):
            raise InputError(f"{where} is no file but a folder, a pipe or a device: give a GGUF file.")
        with path.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise InputError(f"{where} is no GGUF file: it does not begin as one.")
    except (OSError, RuntimeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or "no file can have this name"
        raise InputError(f"{where} cannot be read: {reason}.") from None


def lies_here(name: str) -> bool:
    """Whether there is a folder of that name here."""
    try:
        return Path(name).expanduser().is_dir()
    except (OSError, RuntimeError, ValueError):  # too long for a path, a NUL in it, or the home of an unknown user
        return False


def check(runs: Iterable[Mapping[str, Any]]) -> None:
    """Refuse runs whose parameters name a model that cannot be loaded: of the Hub, not set up, or no GGUF file.

    A Hub that does not answer is not asked again, neither in this process nor in those that it starts.
    """
    for name in dict.fromkeys(values["model"] for values in runs if values.get("model")):
        whole, _ = split(name)
        if whole in embedded.MODELS:
            embedded.require(whole)
        elif is_gguf(whole):
            require_gguf(Path(whole).expanduser())
        elif not (whole.startswith(PREFIX) or is_folder(whole)) and not hub_answers(whole):
            constants.HF_HUB_OFFLINE = True
            os.environ["HF_HUB_OFFLINE"] = "1"


def hub_answers(name: str) -> bool:
    """Whether the Hub has the model, or only its cache here has, because the Hub does not answer soon.

    An InputError if there is no such model, or none that can be reached.
    """
    if not name.strip() or name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise InputError(
            f"There is no model {shown(name)}; give the folder that holds its config.json, or a GGUF file."
        )
    said: list[Exception | None] = []

    def ask() -> None:
        try:
            said.append(HfApi().model_info(name, timeout=2 * _WAIT) and None)
        except Exception as error:  # which error says that there is no network depends on the client's HTTP library
            said.append(error)

    if not constants.HF_HUB_OFFLINE:
        # Apart, because neither the look-up of the Hub's address nor a server that dribbles keeps to a limit of time.
        asking = threading.Thread(target=ask, daemon=True)
        asking.start()
        asking.join(_WAIT)
    error = said[0] if said else TimeoutError(f"no answer within {_WAIT} s")
    if error is None or (isinstance(error, hub_errors.HfHubHTTPError) and error.response.status_code < 429):
        if isinstance(error, hub_errors.RepositoryNotFoundError) and not isinstance(error, hub_errors.GatedRepoError):
            raise InputError(_absent(name))
        return True
    try:
        is_cached = isinstance(try_to_load_from_cache(name, "config.json"), str)
    except hub_errors.HFValidationError:
        raise InputError(_absent(name)) from None
    if not is_cached:
        raise InputError(unreachable(name))
    if not constants.HF_HUB_OFFLINE:
        log.info("The Hub cannot be reached (%s): %s is looked for in its cache here.", error, name)
    return False


def unreachable(name: str) -> str:
    """What is said of a model that is neither here nor to be had."""
    return (
        f"Model {shown(name)} is not in the local Hub cache and the Hub cannot be reached: check its spelling "
        f"and the network, or use {EMBEDDED!r}, which needs none."
    )


def _absent(name: str) -> str:
    return (
        f"There is no model {shown(name)} on the Hub, or it is private: check the spelling, log in with "
        f"`hf auth login`, or use {EMBEDDED!r}, a local folder or {PREFIX}gpt2."
    )
