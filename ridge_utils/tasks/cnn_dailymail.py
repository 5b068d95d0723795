"""CNN/DailyMail (paper v6, Section 5, multi-token only): news articles and the highlights that summarise them.

The prompt holds the first words of an article and ``Highlights:`` on a line of its own; the target is the highlights:

    Port Arn (LANTERN) -- Two ferries ran again on Tuesday across the Sound of Arn, three days after dock pilots …
    Highlights:   →    Ferries cross the Sound of Arn again after a strike of three days by dock pilots. The pilots …

The paper states no splits. Here the shift is one of outlet, which the set holds by nature: training and
in-distribution (ID) articles are the Daily Mail's, out-of-distribution (OOD) ones are CNN's, recognised by ``(CNN`` in
their first 120 characters. Where the articles come from:

- local: every CSV file of the folder ``cnn_dailymail`` in ``data_dir``, with the columns ``id``, ``article`` and
  ``highlights``; the hash of ``id`` divides the Daily Mail's articles into halves for train and ID.
- Hub: train is the Daily Mail's part of the validation split, ID and OOD are the two outlets' parts of the test split.
- offline: short news items about invented places and people, written for this project; a regional newspaper's are
  divided like the Daily Mail's, and a news agency's are OOD.
"""

import hashlib
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field

from ridge_utils.errors import InputError
from ridge_utils.tasks import sources
from ridge_utils.tasks.base import Example, Split

NAME = "cnn_dailymail"
HUB_REPO = "abisee/cnn_dailymail"
HUB_CONFIG = "3.0.0"
HUB_REVISION = "96df5e686bee6baa90b8bee7c28b81fa3fa6223d"
#: The outlet of this project's own items that is out-of-distribution.
AGENCY = "Lantern Wire"

_ITEMS = Path(__file__).with_name("news_items.csv")
_CNN_WITHIN = 120
_WORD = re.compile(r"[^\W_]+")
_SHORTEST = 4
#: Words of at least four letters that any summary may hold, whatever it is about.
_STOP = frozenset(
    _WORD.findall("""
    about after again against along already also although among another anyone around away back because been before
    being below between both came come could does doing done down during each either else even ever every first
    former from further gave give goes going gone have having here hers herself himself however into itself just
    last later least less like made make many maybe might more most much must near nearly never next often once only
    onto other others ours over perhaps quite rather said same says seen several shall should since some soon still
    such take taken than that their theirs them themselves then there these they this those though through thus till
    today together told took toward towards under until upon used using very want well went were what when where
    whether which while whole whom whose will with within without would year years yesterday your yours
    """)
)


class _Row(BaseModel):
    id: sources.Text
    article: sources.Text
    highlights: sources.Text


def load(
    split: Split,
    n: int | None,
    seed: int = 0,
    *,
    data_dir: str | Path | None = None,
    source: sources.Origin = "auto",
    max_words: Annotated[int | None, Field(ge=1, description="null, or an integer of at least 1")] = 200,
) -> list[Example]:
    """``n`` different articles; their ``signal_spans`` are what a summary repeats, see :func:`signal_spans`.

    White space is normalised: words of the article, and lines of the highlights, are joined by one space each. The
    prompt holds at most ``max_words`` words of the article, or the whole article where that is None. Of articles that
    begin with the same ones the first counts, so no prompt stands in two splits.

    The folder ``data_dir`` holds ``cnn_dailymail/*.csv``.
    """
    origin = sources.resolve(NAME, source, data_dir)
    if data_dir:
        rows = _local(Path(data_dir).expanduser() / NAME)
    elif origin == "hub":
        rows = _hub()
    else:
        rows = _read(_ITEMS, lambda row: row["outlet"] == AGENCY)
    first: dict[str, tuple[str, Split]] = {}
    for row, part in rows:
        first.setdefault(" ".join(row.article.split()[:max_words]), (" ".join(row.highlights.split()), part))
    examples = [
        Example(
            f"{article}\nHighlights:",
            f" {highlights}",
            split,
            "synthetic" if origin == "offline" else origin,
            signal_spans(article, highlights),
        )
        for article, (highlights, part) in first.items()
        if part == split
    ]
    return sources.draw(f"the {split} split of {NAME}", examples, n, f"{NAME}/{split}/{seed}")


def signal_spans(article: str, highlights: str) -> tuple[tuple[int, int], ...]:
    """Where an article holds the content words of its highlights: what a summary repeats.

    A content word is a run of at least four letters or digits that is not on a short list of function words (said,
    after, their, …). Whole words are compared, without regard to case: ``Ferry`` finds ``ferry``, not ``ferries``.
    The ranges are half-open, of characters.
    """
    words = {word.casefold() for word in _WORD.findall(highlights) if len(word) >= _SHORTEST} - _STOP
    return tuple(match.span() for match in _WORD.finditer(article) if match.group().casefold() in words)


def _local(folder: Path) -> Iterator[tuple[_Row, Split]]:
    if not folder.is_dir():
        raise InputError(f"There is no folder {folder}: data_dir must be the folder that holds {NAME}/*.csv.")
    paths = sorted(folder.glob("*.csv"))
    if not paths:
        raise InputError(f"The folder {folder} has no CSV file; put those with {', '.join(_Row.model_fields)} into it.")
    for path in paths:
        yield from _read(path, lambda row: _is_cnn(row["article"]))


def _read(path: Path, is_shifted: Callable[[dict[str, str]], bool]) -> Iterator[tuple[_Row, Split]]:
    for where, columns in sources.read_csv(path, _Row.model_fields):
        row = sources.parse(_Row, columns, where)
        in_training = hashlib.sha256(row.id.encode()).digest()[0] < 128
        yield row, "ood" if is_shifted(columns) else "train" if in_training else "id"


def _hub() -> Iterator[tuple[_Row, Split]]:
    # Both splits for any request: an article of the validation split that the test split repeats stays in train.
    for part in ("validation", "test"):
        for index, columns in enumerate(sources.from_hub(NAME, HUB_REPO, HUB_CONFIG, HUB_REVISION, part)):
            row = sources.parse(_Row, columns, f"row {index} of {part}, {HUB_REPO}")
            shifted = _is_cnn(row.article)
            if part == "test" or not shifted:
                yield row, "train" if part == "validation" else "ood" if shifted else "id"


def _is_cnn(article: str) -> bool:
    return "(CNN" in article[:_CNN_WITHIN]
