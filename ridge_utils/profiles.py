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
from typing import Annotated, Any, TypeVar

import pydantic
import yaml
from pydantic import Field

from ridge_utils.errors import InputError, explain

#: The folder of the profiles, in a checkout of the project.
FOLDER = Path(__file__).resolve().parent.parent / "notebooks" / "profiles"

Model = TypeVar("Model", bound=pydantic.BaseModel)

# Parameters by notebook; of a notebook without any, YAML gives None.
ByNotebook = Annotated[
    dict[str, Annotated[dict[str, Any], pydantic.BeforeValidator(lambda own: {} if own is None else own)]],
    Field(min_length=1, description="a mapping of each notebook's name to its own parameters"),
]
Values = Annotated[dict[str, Any], Field(description="a mapping of names to values")]
Text = Annotated[str, Field(description="a text")]
Truth = Annotated[bool, Field(description="true or false")]


class _File(pydantic.BaseModel):
    """What a profile's file may hold; :class:`Profile` says what it means."""

    model_config = pydantic.ConfigDict(extra="forbid", strict=True)
    title: Text
    notebooks: ByNotebook
    parameters: Values = {}
    reference: Truth = False
    real_data: Truth = False
    expected: Values = {}


@dataclass(frozen=True)
class Profile:
    """A named set of parameters for one or more notebooks."""

    #: the file's name without its ending; also of its folder in ``results/``
    name: str
    title: str
    #: parameters by notebook, beyond those that all of them share
    notebooks: dict[str, dict[str, Any]]
    #: parameters of every notebook that declares them
    parameters: dict[str, Any] = field(default_factory=dict)
    #: whether its tables are kept in ``results/``
    reference: bool = False
    #: whether it reads the real data sets from a folder that the user has
    real_data: bool = False
    #: what it is expected to need, for the reader
    expected: dict[str, str] = field(default_factory=dict)
    folder: Path = field(default=FOLDER, compare=False)


def load(name: str) -> Profile:
    """Read a profile, given a file's path, or the name of one in ``notebooks/profiles``."""
    try:
        own_file = Path(name).expanduser()
        path = own_file if own_file.is_file() else FOLDER / f"{name.removesuffix('.yaml')}.yaml"
        exists = path.exists()
    except (OSError, RuntimeError, ValueError):  # a name too long for a path, or the home of an unknown user
        exists = False
    if not exists:
        known = ", ".join(sorted(p.stem for p in FOLDER.glob("*.yaml")))
        raise InputError(f"There is no profile {name!r}; give a file, or one of {known}.")
    content = read(path, "profile", _File)
    return Profile(path.stem, **content.model_dump(), folder=path.resolve().parent)


def read(path: Path, what: str, model: type[Model]) -> Model:
    """Read a YAML file as a model; ``what`` says in errors what it is to be, as in "profile"."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"The {what} {path} cannot be read: {' '.join(str(error).split())}.") from error
    if isinstance(content, dict):
        content = {str(key): value for key, value in content.items()}
    try:
        return model.model_validate(content)
    except pydantic.ValidationError as error:
        raise InputError(explain(error, content, model, f"the {what} {path}")) from None


def references() -> list[Profile]:
    """The profiles whose tables are kept in ``results/``, by name."""
    every = [load(str(path)) for path in sorted(FOLDER.glob("*.yaml"))]
    return [profile for profile in every if profile.reference]
