"""Bad input: odd values of every parameter, field, option, variable and file, made from what they are declared as.

A command runs in this process, up to where it would start a kernel; a few cases run the cells of a page.
"""

import argparse
import contextlib
import copy
import csv
import inspect
import io
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from ridge_utils import cache, notebooks, profiles, tasks
from ridge_utils.errors import InputError, StorageError
from ridge_utils.run import cli, sweep
from tests.campaign.cases import Case, sentence

Made = Iterator[tuple[str, Callable[[], str]]]

ROOT = notebooks.NOTEBOOKS.parent
_LAUGHS = "[" + ", ".join(f"&a{i} [{', '.join([f'*a{i - 1}' if i else 'ha'] * 9)}]" for i in range(9)) + "]"
#: What somebody may write as YAML, in a file or behind -p: what no parameter may be, and the types of what one may.
_NEVER = [
    *("null", "~", "9" * 5000, "[0, 0]", "[0, -1]", "[a, a]", "[[0]]", "[null]", "[true]", "[1000000000000]", "[.nan]"),
    *("{1: 2}", "{a: 1, a: 2}", "{a: " * 50 + "1" + "}" * 50, "[" * 3000, "&a [*a]", _LAUGHS, "!!int 3", "{a", "*"),
    *("!!python/object/apply:os.system [exit]", "!!binary aGk=", "!!set {a}", "a\0b", "a\nb", "a\udc80b", "x" * 10**6),
    "[" + "0, " * 2 * 10**6 + "0]",
]
_TEXT_ONLY = [
    *("", "2024-01-01", "2024-01-01T00:00:00Z", "1:30", "0x10", "yes", "-1", "1e400", ".nan", "-.inf", "nan", "1_000"),
    *("999999999999", "1e9", "é" * 50, "%d {0} \\"),
]
YAML = dict.fromkeys(_NEVER, "") | dict.fromkeys(_TEXT_ONLY, "str") | {"{}": "dict", "true": "bool", "1.5": "float"}
YAML |= {"1e-400": "float", "[]": "list[int] list[str]", "[1]": "list[int]", "[2024-01-01]": "list[str]"}
#: What somebody may type where a name, a number or a path is meant; what stands in angles is an odd file.
TEXTS = [
    *("", " ", "-", "--", "0", "-1", "1e9", "1000000000", "9" * 5000, "nan", "1.5", "2024-01-01", "é", "%s", "[:"),
    *("{}", "a\0b", "a\nb", "a\udc80b", "x" * 5000, "/", ".", "..", "../..", "/dev/null", "/dev/zero", "/dev/stdin"),
    *("~no-such-user/x", "<folder>", "<fifo>", "<loop>", "<dangling>", "<binary>", "<sparse>", "<text>"),
    *("<folder>/x/y", "<text>/x"),
]
_JSON = [None, True, 0, -1, 1.5, 10**30, "", " ", "a\0b", "\ud800", [], ["a", "a"], {}, [[0, 10**12]], "x" * 10**7]


def cases(rng: random.Random, count: int) -> Iterator[Case]:
    """Cases of all makers, and at the end that nothing was written into the checkout."""
    before = _git_status()
    made = [_streams()] if count >= 1000 else []
    shares = {_parameters: 32, _fields: 18, _options: 12, _task_options: 10, _files: 22, _environment: 5, _cells: 1}
    made += [itertools.islice(maker(rng), max(1, count * share // 100)) for maker, share in shares.items()]
    for name, run in itertools.chain(*made):
        yield Case("inputs", ascii(name)[1:300], run)
    yield Case("inputs", "the checkout is as it was", lambda: "" if _git_status() == before else _git_status())


def _git_status() -> str:
    return subprocess.run(["git", "status", "-s"], cwd=ROOT, capture_output=True, text=True, check=False).stdout


@contextlib.contextmanager
def _place(**environment: str) -> Iterator[Path]:
    """A folder to work in, with odd files, and the variables of the environment that say where things are."""
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        Path("folder").mkdir()
        os.mkfifo("fifo")
        Path("loop").symlink_to("loop")
        Path("dangling").symlink_to("nowhere")
        Path("binary").write_bytes(bytes(range(256)))
        Path("text").write_text("some text\n", encoding="utf-8")
        with Path("sparse").open("wb") as file:
            file.truncate(2**40)
        own = {"HOME": name, "RIDGE_CACHE": f"{name}/cache", "HF_HUB_OFFLINE": "1", "HF_ENDPOINT": "http://127.0.0.1:9"}
        with mock.patch.dict(os.environ, own | environment):
            yield Path(name)


def _call(arguments: list[str], bad: bool = False, name: str = "", **environment: str) -> str:
    """What is wrong with how a command ends; what is ``bad`` must be refused, and ``name`` be named."""
    out, err = io.StringIO(), io.StringIO()
    with _place(**environment) as folder, contextlib.ExitStack() as stack:
        stack.enter_context(contextlib.redirect_stdout(out))
        stack.enter_context(contextlib.redirect_stderr(err))
        stack.enter_context(mock.patch.object(notebooks, "execute", lambda source, to, *_: shutil.copy(source, to)))
        for long in ("notebooks.refresh", "models.load", "audit.predictions.run"):
            stack.enter_context(mock.patch(f"ridge_utils.{long}", return_value=0))
        try:
            status = cli.main([text.replace("<", f"{folder}/").replace(">", "") for text in arguments])
        except SystemExit as end:  # of --help
            status = end.code
    said = err.getvalue()
    if status == 0:
        return "accepted" if bad else ""
    errors = [line.removeprefix("error: ") for line in said.splitlines() if line.startswith("error: ")]
    if status not in (1, 2) or not errors or "a defect of ridge" in errors[-1] or "Traceback" in said:
        return f"exit status {status}: {said[-300:]!r}"
    is_named = name.removesuffix("s") in errors[-1].lower()
    return sentence(errors[-1]) or ("" if is_named else f"does not name {name!r}: {errors[-1]}")


def _pairs(rng: random.Random, every: list[Any], odd: list[str]) -> Iterator[tuple[Any, str]]:
    """Each of a list in turn, with an odd text, without end."""
    return ((each, rng.choice(odd)) for each in itertools.cycle(rng.sample(every, len(every))))


def _parameters(rng: random.Random) -> Made:
    every = [(notebook, p) for notebook in notebooks.names() for p in notebooks.parameters(notebook).values()]
    for (notebook, parameter), text in _pairs(rng, every, list(YAML)):
        # Behind -p a text is what it is, not YAML.
        bad = parameter.type not in YAML[text].split()
        if parameter.type == "str":
            bad = len(text) > 4096 or not text.isprintable()
        arguments = ["run", notebook, "-o", "out.ipynb", "-p", f"{parameter.name}={text}"]
        yield f"{notebook} -p {parameter.name}={text}", lambda a=arguments, b=bad, n=parameter.name: _call(a, b, n)


def _fields(rng: random.Random) -> Made:
    """Each field of a profile and of a grid, each parameter in them, and the file itself."""
    good = {
        "profile": {"title": "a", "notebooks": "{attention: {}}"},
        "grid": {"notebooks": "{attention: {}}", "models": "[random:gpt2-2x16]", "seeds": "[0]"},
    }
    fields = {"profile": profiles._File.model_fields, "grid": sweep._File.model_fields}
    more = ["unknown", "notebooks.attention", "notebooks.nothing", "overrides.random:gpt2-2x16", ""]
    more += [f"parameters.{name}" for name in notebooks.parameters("attention")]
    every = [(kind, field) for kind in good for field in [*fields[kind], *more]]
    for (kind, field), text in _pairs(rng, every, list(YAML)):
        name, _, inner = field.partition(".")
        lines = good[kind] | {name: f"{{{inner}: {text}}}" if inner else text}
        content = "".join(f"{key}: {value}\n" for key, value in lines.items()) if field else text
        yield f"{kind} {field}: {text}", lambda k=kind, c=content: _call_with(k, c)


def _call_with(kind: str, content: str) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "given.yaml")
        path.write_bytes(content.encode(errors="surrogatepass"))
        if kind == "grid":
            return _call(["sweep", str(path), "-o", "out", "--list"])
        return _call(["run", "attention", "-o", "out.ipynb", "--profile", str(path)])


def _options(rng: random.Random) -> Made:
    """Every command with each of its options, from the parser itself, and what is no command."""
    parser = cli._parser()
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction)).choices
    needed = {"notebook": "attention", "grid": str(notebooks.NOTEBOOKS / "grids" / "paper.yaml")}
    every: list[tuple[str, Any]] = [(command, action) for command, its in commands.items() for action in its._actions]
    every += [(text, None) for text in TEXTS]
    for (command, action), text in _pairs(rng, every, [*TEXTS, *(f"{text}.ipynb" for text in TEXTS)]):
        # Else a sweep or the references would be run, and JupyterLab be opened.
        only = {"sweep": ["--list"], "reference": ["--list"], "lab": ["--copy-only"]}
        arguments = [command, *only.get(command, [])]
        for each in commands[command]._actions if action else []:
            if each is action:
                arguments += [*each.option_strings[-1:], *([text] if each.nargs != 0 else [])]
            elif not each.option_strings and each.dest in needed:
                arguments.append(needed[each.dest])
        yield " ".join(arguments), lambda a=arguments: _call(a)


def _task_options(rng: random.Random) -> Made:
    every = [(task, "unknown") for task in [*tasks.TASKS, "no.jsonl", "nothing"]]
    for task, module in tasks.TASKS.items():
        keywords = inspect.signature(module.load).parameters.values()
        every += [(task, keyword.name) for keyword in keywords if keyword.kind is keyword.KEYWORD_ONLY]
    for (task, option), text in _pairs(rng, every, list(YAML)):
        given = ["-p", f"task={task}", "-p", f"task_options={{{option}: {text}}}"]
        yield " ".join(given), lambda g=given: _call(["run", "attention", "-o", "out.ipynb", *g])
        with contextlib.suppress(InputError):
            options = profiles.parse_yaml(f"{{{option}: {text}}}", "it")
            n = rng.choice([1, 0, -1, 10**9, 10**5000, True, 1.5, None, "3"])
            yield f"load {' '.join(given)}", lambda t=task, o=options, k=n: _load(t, k, o)
            yield f"load {task}, {n!r:.20}" if n != 10**5000 else f"load {task}", lambda t=task, k=n: _load(t, k, {})


def _load(task: str, n: Any, options: dict[str, Any], split: str = "id") -> str:
    """What is wrong with how a task is read."""
    try:
        return "" if tasks.load(task, split, n, **options) else "no examples"
    except (InputError, StorageError) as error:
        return sentence(str(error))


# Files of the tasks.


def _good_files() -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Rows of every file that each task reads."""
    numbers, choices = range(40), [{"label": letter, "text": f"choice {letter}"} for letter in "ABCDE"]
    story = "[Ann{}] is the mother of [Bob]. [Bob] is the son of [Carl]."
    said = {"target": "husband", "task_name": "task_1.2", "edge_types": "['mother', 'son']"}
    clutrr = [{"story": story.format(i), "query": f"('Ann{i}', 'Carl')"} | said for i in numbers]
    longer = [row | {"task_name": "task_1.3", "edge_types": "['mother', 'son', 'son']"} for row in clutrr]
    asked = [{"stem": f"Where is it {i}?", "question_concept": f"it {i}", "choices": choices} for i in numbers]
    ecqa = [{"id": f"q{i}", "answerKey": "A", "question": asked[i]} for i in numbers]
    folder = "clutrr/gen_train23_test2to10"
    parts = {"train": ecqa[:20], "val": ecqa[20:30], "test": ecqa[30:]}
    news = [{"id": f"n{i}", "article": f"The ferry {i} ran again.", "highlights": "Ferries run."} for i in numbers]
    own = [{"prompt": f"{i} + 1 =", "target": f" {i + 1}", "split": "id", "signal_spans": [[0, 1]]} for i in numbers]
    return {
        "own.jsonl": {"own.jsonl": own},
        "clutrr": {f"{folder}/{name}.csv": clutrr for name in ("1.2,1.3_train", "1.2_test")}
        | {f"{folder}/1.3_test.csv": longer},
        "ecqa": {f"commonsense_qa/{name}_rand_split.jsonl": parts["train"] for name in ("train",)}
        | {"commonsense_qa/dev_rand_split.jsonl": ecqa[20:]}
        | {f"ecqa/{name}_ids.txt": rows for name, rows in parts.items()},
        "cnn_dailymail": {"cnn_dailymail/test.csv": news},
    }


def _written(rows: list[dict[str, Any]], path: str) -> bytes:
    """The rows as their file's ending says."""
    if path.endswith(".csv"):
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
        return text.getvalue().encode(errors="surrogatepass")
    lines = [json.dumps(row) if path.endswith(".jsonl") else row["id"] for row in rows]
    return "\n".join(lines).encode(errors="surrogatepass")


def _flipped(content: bytes, rng: random.Random) -> bytes:
    return bytes(byte ^ (1 << rng.randrange(8) if rng.random() < 0.01 else 0) for byte in content)


#: What can become of a file's bytes.
_DAMAGE: dict[str, Callable[[bytes, random.Random], bytes]] = {
    "empty": lambda *_: b"",
    "blank": lambda *_: b" \n\n ",
    "with a BOM": lambda content, _: b"\xef\xbb\xbf" + content,
    "UTF-16": lambda content, _: content.decode().encode("utf-16"),
    "Latin-1": lambda content, _: content + b"\xe9",
    "NUL": lambda content, _: b"\0" * 1000 + content,
    "random": lambda content, rng: rng.randbytes(len(content)),
    "cut": lambda content, rng: content[: rng.randrange(len(content))],
    "flipped": _flipped,
    "twice": lambda content, _: content + b"\n" + content,
    "deep": lambda content, rng: content + b"\n" + rng.choice([b"[" * 3000, b'{"a":' * 10**5]),
    "keys twice": lambda content, _: content.replace(b'{"', b'{"prompt": "x", "id": "y", "', 1),
    "NaN": lambda content, _: content + b'\n{"prompt": NaN, "id": -Infinity}',
    "a huge number": lambda content, _: content + b'\n{"prompt": ' + b"9" * 5000 + b"}",
    "a long line": lambda content, rng: content + b"x" * rng.choice([10**6] * 9 + [10**8]),
    "many rows": lambda content, rng: content + (b"\n" + content.splitlines()[-1]) * rng.choice([10**4] * 19 + [10**6]),
    "a quote": lambda content, rng: (place := rng.randrange(len(content)), content[:place] + b'"' + content[place:])[1],
    "semicolons": lambda content, _: content.replace(b",", b";"),
    "a column more": lambda content, _: content.replace(b"\n", b",more\n", 3),
    "no first line": lambda content, _: content.partition(b"\n")[2],
    "its header twice": lambda content, _: content.splitlines()[0] + b"," + content,
    "old line ends": lambda content, _: content.replace(b"\n", b"\r"),
}


def _ways(value: Any, to: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The keys that lead to each value inside a value."""
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield (*to, key)
        yield from _ways(value[key], (*to, key))


def _files(rng: random.Random) -> Made:
    good = _good_files()
    for task, file in itertools.cycle([(task, file) for task, files in good.items() for file in files]):
        rows: Any = copy.deepcopy(good[task][file])
        content: bytes | str
        if (kind := rng.random()) < 0.2:
            content = what = rng.choice([text for text in TEXTS if text.startswith(("<", "/dev"))] + ["gone"])
        elif kind < 0.5:
            what = rng.choice(list(_DAMAGE))
            content = _DAMAGE[what](_written(rows, file), rng)
        else:
            number, value = rng.randrange(3), rng.choice([*_JSON, "gone"])
            *way, last = rng.choice(list(_ways(rows[0])))
            what, inner = f"row {number}, {[*way, last]}: {value!r:.50}", rows[number]
            for key in way:
                inner = inner[key]
            inner[last] = value
            if value == "gone":
                del inner[last]
            try:
                content = _written(rows, file)
            except (KeyError, TypeError, ValueError):  # what this format cannot say
                continue
        yield f"{file}: {what}", lambda t=task, f=file, c=content: _with_file(good[t], t, f, c)


def _with_file(files: dict[str, Any], task: str, damaged: str, content: bytes | str) -> str:
    with _place() as folder:
        for file, rows in files.items():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_bytes(_written(rows, file))
        if isinstance(content, bytes):
            (folder / damaged).write_bytes(content)
        else:
            (folder / damaged).unlink()
            if content != "gone":
                (folder / damaged).symlink_to(content.replace("<", f"{folder}/").replace(">", ""))
        own = task.endswith(".jsonl")
        read = [
            _load(str(folder / damaged) if own else task, n, {} if own else {"data_dir": folder}, split)
            for split in tasks.SPLITS
            for n in (1, None)
        ]
    return next(filter(None, read), "")


# Around a command.


def _environment(rng: random.Random) -> Made:
    """Variables that say where things are, under the commands that read them."""
    commands = [f"{name} --list" if name == "reference" else name for name in ("list", "params attention", "reference")]
    commands += ["setup", "run attention -o out.ipynb", "run attention --profile smollm2-clutrr -o out.ipynb"]
    names = ["RIDGE_CACHE", "RIDGE_DATA", "HF_HOME", "HOME", "HF_ENDPOINT", "XDG_CACHE_HOME", "TERM", "COLUMNS"]
    for (name, text), command in _pairs(rng, list(itertools.product(names, TEXTS)), commands):
        if "\0" not in text:
            yield f"{name}={text} {command}", lambda n=name, t=text, c=command: _call(c.split(), **{n: t})
        if name == "RIDGE_CACHE" and "\0" not in text and not text.startswith(("/", ".")):
            yield f"an entry of the cache {text}", lambda t=text: _use_cache(t)


def _use_cache(at: str) -> str:
    """What is wrong with how an entry is made in a cache at an odd place."""
    with _place(RIDGE_CACHE=at.strip("<>")):
        try:
            with cache.writing(cache.directory() / "kind" / "entry") as entry:
                (entry / "file").write_text("x", encoding="utf-8")
        except (InputError, StorageError) as error:
            return sentence(str(error))
    return ""


def _streams() -> Made:
    """Standard streams that are closed, full or cannot say what is written."""
    ridge = f"{sys.executable} -m ridge_utils"
    for command in (
        *(f"{ridge} params multi_token | true", f"{ridge} list | head -1", f"{ridge} list > /dev/full"),
        *(f"{ridge} list {closed}" for closed in (">&-", "2>&-", ">&- 2>&-", "<&-")),
        *(
            f"{variable} {ridge} {does}"
            for variable in ("LC_ALL=C", "PYTHONIOENCODING=ascii")
            for does in ("list", "é")
        ),
        f"env -u HOME -u XDG_CACHE_HOME {ridge} list",
    ):
        yield command, lambda c=command: _shell(c)


def _shell(command: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, env=environment)
    odd = done.returncode not in (0, 1, 2) or any(word in done.stderr for word in ("Traceback", "Exception", "defect"))
    # Who reads no further is told nothing.
    return f"exit status {done.returncode}: {done.stderr}" if odd or ("|" in command and done.stderr) else ""


def _cells(rng: random.Random) -> Made:
    """Pages on a tiny model, three of their parameters at the edge of what they may be."""
    from tests.test_notebooks import SMALL

    whole = [0, 1, 2, 3, 5, 20]
    kinds: dict[str, Callable[[], Any]] = {
        "int": lambda: rng.choice(whole),
        "float": lambda: rng.choice([1e-9, 0.5, 1.0, 500.0]),
        "list[int]": lambda: sorted(rng.sample(whole, rng.randrange(4))),
    }
    for name in itertools.cycle(rng.sample(list(SMALL), len(SMALL))):
        declared = notebooks.parameters(name)
        odd = [p for p in declared.values() if p.type in kinds]
        changed = {p.name: kinds[p.type]() for p in rng.sample(odd, 3)}
        if "model" in declared:
            changed["model"] = f"random:{rng.choice(['gpt2', 'llama', 'qwen2'])}-{rng.randrange(1, 5)}x16"
        given = [*SMALL[name], *(f"{key}={value}" for key, value in changed.items())]
        yield f"{name} {' '.join(given)}", lambda n=name, g=given: _run_cells(n, g)


def _run_cells(name: str, given: list[str]) -> str:
    from tests.test_notebooks import execute

    with _place() as folder, pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(io.StringIO()):
        try:
            notebooks.consistent(name, notebooks.parse(name, given))
            execute(name, given, folder / "table.csv", patch)
        except (InputError, StorageError) as error:
            return sentence(str(error))
    return ""
