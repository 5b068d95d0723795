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

import difflib
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, ClassVar, TypeVar

import pydantic
import yaml
from pydantic import Field

from ridge_utils.errors import InputError, explain, named, read_text, shown, user_path

_PACKAGED = Path(__file__).resolve().with_name("_book")
#: Whether the package was installed from a wheel, which carries the folders of :data:`ROOT`, and is no checkout.
INSTALLED = _PACKAGED.is_dir()
#: Where the folders notebooks and results are.
ROOT = _PACKAGED if INSTALLED else _PACKAGED.parent.parent
#: The folder of the profiles.
FOLDER = ROOT / "notebooks" / "profiles"

#: Characters of YAML that are read, in a file or behind ``-p name=``.
_LONGEST = 100_000

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


class _Plain(yaml.SafeLoader):
    """YAML as far as JSON goes: texts, numbers, truths, null, lists and mappings of texts, each key once.

    Left out is what stands for something else than is written: aliases, of which a few lines make gigabytes, tags,
    dates, sexagesimal and octal numbers, and ``no`` for false.
    """

    yaml_implicit_resolvers: ClassVar = {}
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event = self.peek_event()
        tag = getattr(event, "tag", None)
        if isinstance(event, yaml.AliasEvent) or getattr(event, "anchor", None) or (tag and tag != "!"):
            raise yaml.MarkedYAMLError(problem="anchors, aliases and tags are not read", problem_mark=event.start_mark)
        self._depth += 1
        if self._depth > 20:
            raise yaml.MarkedYAMLError(problem="it is nested too deep", problem_mark=event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[str, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.tag != "tag:yaml.org,2002:str" or key.value in seen:
                what = shown(key.value) if isinstance(key.value, str) else f"a {key.id}"
                raise yaml.MarkedYAMLError(
                    problem=f"a key must be a text that stands there once, but is {what}", problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


for _kind, _pattern, _starts in (
    ("null", r"~|null|", "~n"),
    ("bool", r"true|false|True|False", "tfTF"),
    ("int", r"[-+]?\d{1,18}", "-+0123456789"),
    ("float", r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|[-+]?\.inf|\.nan", "-+.0123456789"),
):
    _Plain.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_pattern})$"), list(_starts))
_Plain.add_implicit_resolver("tag:yaml.org,2002:null", re.compile("$"), [""])
_Plain.add_constructor("tag:yaml.org,2002:int", lambda loader, node: int(node.value))


def parse_yaml(text: str, where: str) -> Any:
    """What a text says as YAML, see :class:`_Plain`; ``where`` it stands."""
    if len(text) > _LONGEST:
        raise InputError(f"{where} has {len(text):,} characters, more than the {_LONGEST:,} that are read: shorten it.")
    try:
        return yaml.load(text, _Plain)  # a safe loader, and less
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f" (line {mark.line + 1})" if mark else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or type(error).__name__
        raise InputError(f"{where} cannot be read{place}: {named(str(reason))}.") from None


def require_checkout(what: str) -> None:
    """Refuse what writes among the project's own files, or reads those that a wheel has not."""
    if INSTALLED:
        raise InputError(f"{what} works in a checkout of the project only; here is what `pip install` gave.")


def load(name: str) -> Profile:
    """Read a profile, given a file's path, or the name of one in ``notebooks/profiles``."""
    own = user_path(name, "A profile")
    stored = user_path(FOLDER / f"{name.removesuffix('.yaml')}.yaml", "A profile")
    path = stored if stored.exists() and not own.is_file() else own
    if not path.exists():
        known = sorted(p.stem for p in FOLDER.glob("*.yaml"))
        near = ", ".join(difflib.get_close_matches(name, known, n=4, cutoff=0.3) or known[:4])
        raise InputError(
            f"There is no profile {shown(name)}; give a file, or one of notebooks/{FOLDER.name}, such as {near}."
        )
    content = read(path, "profile", _File)
    return Profile(path.stem, **content.model_dump(), folder=path.resolve().parent)


def read(path: Path, what: str, model: type[Model]) -> Model:
    """Read a YAML file as a model; ``what`` says in errors what it is to be, as in "profile"."""
    where = f"{what} {named(str(path))}"
    content = parse_yaml(read_text(path, f"The {what}", 4 * _LONGEST), f"The {where}")
    try:
        return model.model_validate(content)
    except pydantic.ValidationError as error:
        raise InputError(explain(error, content, model, f"the {where}")) from None


def references() -> list[Profile]:
    """The profiles whose tables are kept in ``results/``, by name."""
    every = [load(str(path)) for path in sorted(FOLDER.glob("*.yaml"))]
    return [profile for profile in every if profile.reference]


def data_dir(profile: Profile, folder: str) -> str:
    """The absolute path of the folder of the real data, which a profile needs."""
    if not folder:
        raise InputError(
            f"The profile {profile.name!r} reads the real data: give their folder with --data-dir (ridge reference), "
            "-p data_dir=FOLDER (ridge run) or RIDGE_DATA, laid out as the page on re-running says."
        )
    return str(user_path(folder, "The folder of the real data").resolve())
