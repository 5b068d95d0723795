"""Named parameter sets: YAML files that say with which parameters which notebooks are run.

For example::

    title: SmolLM2-135M on CLUTRR
    reference: true        # `ridge reference` runs it and keeps its tables in results/
    real_data: true        # it needs the folder of the real data sets
    parameters: {model: smollm2-135m, task: clutrr, steps: 200}      # for every notebook that declares them
    notebooks:
      predictive_information: {}
      attention: {n_samples: 50}                                     # for one notebook
    expected: {hardware: two CPU cores, memory: 8 GB, time: 1 hour}  # for the reader
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ridge_utils.errors import InputError

#: The folder of the profiles, in a checkout of the project.
FOLDER = Path(__file__).resolve().parent.parent / "notebooks" / "profiles"


@dataclass(frozen=True)
class Profile:
    """A named set of parameters for one or more notebooks."""

    #: the file's name without its ending; also of its folder in ``results/``
    name: str
    #: what it is, for the reader
    title: str
    #: parameters by notebook, beyond those that all of them share
    notebooks: dict[str, dict[str, Any]]
    #: parameters of every notebook that declares them
    parameters: dict[str, Any] = field(default_factory=dict)
    #: whether its tables are kept in ``results/``
    reference: bool = False
    #: whether it reads the real data sets from a folder that the user has
    real_data: bool = False
    #: what it is expected to need, by whatever the author found worth saying
    expected: dict[str, str] = field(default_factory=dict)
    #: the folder that its file is in
    folder: Path = field(default=FOLDER, compare=False)


def load(name: str) -> Profile:
    """Read a profile.

    Args:
        name: a file's path, or the name of one in ``notebooks/profiles``.

    Raises:
        InputError: there is no such file, or it is not a profile.
    """
    try:
        path = Path(name).expanduser()
        if not path.is_file():
            path = FOLDER / f"{name.removesuffix('.yaml')}.yaml"
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml")))
        raise InputError(f"There is no profile {name!r}; give a file, or one of {known}.") from None
    # A name too long for a path, the home of an unknown user, a file that is not UTF-8, a text that is not YAML.
    except (OSError, RuntimeError, ValueError, yaml.YAMLError) as error:
        raise InputError(f"The profile {name!r} cannot be read: {' '.join(str(error).split())}.") from error
    kinds = {"title": str, "notebooks": dict, "parameters": dict, "reference": bool, "real_data": bool}
    kinds["expected"] = dict
    if not isinstance(content, dict) or not {"title", "notebooks"} <= set(content):
        raise InputError(f"The profile {path} must be a mapping with at least title and notebooks.")
    if unknown := sorted(map(str, set(content) - set(kinds))):
        raise InputError(f"The profile {path} has the unknown field {unknown[0]!r}; the fields are {', '.join(kinds)}.")
    for key, value in content.items():
        if not isinstance(value, kinds[key]):
            raise InputError(f"In the profile {path}, {key!r} must be a {kinds[key].__name__}, but is {value!r}.")
    notebooks = {notebook: own or {} for notebook, own in content["notebooks"].items()}
    if not notebooks or not all(isinstance(k, str) and isinstance(own, dict) for k, own in notebooks.items()):
        raise InputError(f"In the profile {path}, 'notebooks' must map each notebook's name to its own parameters.")
    return Profile(path.stem, **{**content, "notebooks": notebooks}, folder=path.resolve().parent)


def references() -> list[Profile]:
    """The profiles whose tables are kept in ``results/``, by name."""
    every = [load(str(path)) for path in sorted(FOLDER.glob("*.yaml"))]
    return [profile for profile in every if profile.reference]
