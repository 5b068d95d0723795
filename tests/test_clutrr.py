import ast
import collections
import csv
import functools
import itertools
import math
import random
import re

import datasets
import pytest

from ridge_utils.errors import InputError
from ridge_utils.tasks import clutrr, kinship

QUESTION = re.compile(r"(.*)\nQuestion: How is (\w+) related to (\w+)\?\nAnswer: (\w+) is (\w+)'s")


class Families:
    """Families of the generator's world, built and read independently of it: only fathers, mothers and marriages."""

    def __init__(self, seed):
        rng = random.Random(seed)
        self.female, self.parents, self.spouse = [], {}, {}
        generation = [self.add(female=bool(i % 2)) for i in range(24)]
        for _ in range(3):
            rng.shuffle(generation)
            children = []
            for man, woman in itertools.product(generation, generation):
                fitting = not self.female[man] and self.female[woman] and not {man, woman} & set(self.spouse)
                if fitting and not self.ancestors(man) & self.ancestors(woman) and rng.random() < 0.9:
                    self.spouse |= {man: woman, woman: man}
                    # Some couples have no children; ten relations in one family need eleven people.
                    for _ in range(rng.choice([0, 1, 2, 3, 10])):
                        children.append(self.add(rng.random() < 0.5))
                        self.parents[children[-1]] = {man, woman}
            generation = children
        people = range(len(self.female))
        self.word = {(x, y): w for x in people for y in people if x != y and (w := self.relation(x, y))}
        self.relatives = collections.defaultdict(lambda: collections.defaultdict(list))
        for (x, y), word in self.word.items():
            self.relatives[x][word].append(y)

    def add(self, female):
        self.female.append(female)
        return len(self.female) - 1

    def of(self, x):
        return self.parents.get(x, set())

    def ancestors(self, x):
        return {x}.union(*(self.ancestors(parent) for parent in self.of(x)))

    def are_siblings(self, x, y):
        return x != y and bool(self.of(x)) and self.of(x) == self.of(y)

    def relation(self, x, y):
        """What y is to x."""
        tests = {
            ("father", "mother"): y in self.of(x),
            ("son", "daughter"): x in self.of(y),
            ("brother", "sister"): self.are_siblings(x, y),
            ("husband", "wife"): self.spouse.get(x) == y,
            ("grandfather", "grandmother"): any(y in self.of(parent) for parent in self.of(x)),
            ("grandson", "granddaughter"): any(x in self.of(parent) for parent in self.of(y)),
            ("uncle", "aunt"): any(self.are_siblings(parent, y) for parent in self.of(x)),
            ("nephew", "niece"): any(self.are_siblings(x, parent) for parent in self.of(y)),
            ("father-in-law", "mother-in-law"): y in self.of(self.spouse.get(x)),
            ("son-in-law", "daughter-in-law"): x in self.of(self.spouse.get(y)),
        }
        found = [words[self.female[y]] for words, holds in tests.items() if holds]
        assert len(found) <= 1, "without marriages of blood relatives no two people are related twice"
        return found[0] if found else None

    def walks(self, chain, rng):
        """Different people each of whom is the next of ``chain`` to the one before, without end."""
        starts = [x for x in self.relatives if chain[0] in self.relatives[x]]

        def extend(walk):
            if len(walk) > len(chain):
                return walk
            nexts = self.relatives[walk[-1]][chain[len(walk) - 1]]
            for person in rng.sample(nexts, len(nexts)):
                if person not in walk and (found := extend([*walk, person])):
                    return found
            return None

        while True:
            if found := extend([rng.choice(starts)]):
                yield found


@pytest.fixture(scope="module")
def families():
    return Families(seed=3)


@functools.cache
def frames():
    """A pattern for each sentence; its groups give the name before, the pronoun, the word and the name after."""
    patterns = []
    for kind, frame in ((kind, frame) for kind, texts in kinship.FRAMES.items() for frame in texts):
        pattern = re.escape(frame).replace(r"\{", "{").replace(r"\}", "}")
        for field, group in [("a", "[A-Z][a-z]+"), ("b", "[A-Z][a-z]+"), ("kin", "[a-z]+")]:
            pattern = pattern.replace(f"{{{field}}}", f"(?P<{field}>{group})", 1)
        pattern = pattern.replace("{his}", "(?P<pronoun>his|her)").replace("{him}", "(?P<pronoun>him|her)")
        patterns.append((kind, re.compile(pattern)))
    return patterns


def read(text):
    """The facts of a text: (a, what b is to a, b), as a reader finds them; and the gender of everyone."""
    facts, female = [], collections.defaultdict(set)
    formal = {familiar: word for word, familiar in kinship.FAMILIAR.items()}
    for sentence in re.findall(r"[^.]+\.", text):
        [(kind, match)] = [(k, m) for k, p in frames() if (m := p.fullmatch(sentence.strip()))]
        word = formal.get(match["kin"], match["kin"])
        assert word in kinship.KINDS[kind]
        facts.append((match["a"], word, match["b"]))
        female[match["a"]].add(match["pronoun"] == "her")
        female[match["b"]].add(word == kinship.KINDS[kind][1])
    return facts, {name: values.pop() for name, values in female.items() if len(values) == 1}


CONVERSE = {
    "father": ("son", "daughter"), "mother": ("son", "daughter"), "son": ("father", "mother"),
    "daughter": ("father", "mother"), "brother": ("brother", "sister"), "sister": ("brother", "sister"),
    "husband": ("husband", "wife"), "wife": ("husband", "wife"), "grandfather": ("grandson", "granddaughter"),
    "grandmother": ("grandson", "granddaughter"), "grandson": ("grandfather", "grandmother"),
    "granddaughter": ("grandfather", "grandmother"), "uncle": ("nephew", "niece"), "aunt": ("nephew", "niece"),
    "nephew": ("uncle", "aunt"), "niece": ("uncle", "aunt"),
}  # fmt: skip


def chain_of(text, first, last):
    """The relations on the way from one person of a story to the other, from its words alone."""
    facts, female = read(text)
    steps = collections.defaultdict(dict)
    for a, word, b in facts:
        steps[a][b] = word
        steps[b][a] = CONVERSE[word][female[a]]
    assert set(female) == set(steps), "a text must give everyone's gender, and only one"
    assert sorted(len(around) for around in steps.values()) == [1, 1] + [2] * (len(steps) - 2), "not a chain"
    chain, walk = [], [first]
    while walk[-1] != last:
        [person] = [other for other in steps[walk[-1]] if other not in walk]
        chain.append(steps[walk[-1]][person])
        walk.append(person)
    assert len(chain) == len(facts)
    return tuple(chain), female


@pytest.mark.parametrize("split", ["train", "ood"])
def test_the_text_determines_the_answer(split, families):
    rng = random.Random(0)
    lengths = collections.Counter()
    for example in clutrr.load(split, 100, seed=5):
        text, last, first, again, whose = QUESTION.fullmatch(example.prompt).groups()
        assert (again, whose) == (last, first)
        chain, female = chain_of(text, first, last)
        lengths[len(chain)] += 1
        assert female[last] == (example.target[1:] in {words[1] for words in kinship.KINDS.values()})
        # Wherever else such people are found, with the right gender for the first, the answer is the same.
        for walk in itertools.islice(families.walks(chain, rng), 10):
            assert families.word.get((walk[0], walk[-1])) == example.target[1:]
    assert set(lengths) == set(clutrr.SPLIT_HOPS[split])


@pytest.mark.parametrize("split", ["train", "ood"])
def test_relations_hops_and_genders_are_balanced(split):
    n = 1800
    examples = clutrr.load(split, n)
    targets = collections.Counter(example.target[1:] for example in examples)
    hops = collections.Counter(example.prompt.count(".") for example in examples)
    first = collections.Counter(QUESTION.fullmatch(e.prompt)[3] in kinship.FEMALE_NAMES for e in examples)
    for counts, values in [(targets, kinship.TARGETS), (hops, clutrr.SPLIT_HOPS[split]), (first, (False, True))]:
        assert set(counts) == set(values)
        share = 1 / len(values)
        for value in values:  # five standard deviations of a binomial
            assert abs(counts[value] - n * share) < 5 * math.sqrt(n * share * (1 - share)), (value, counts)


def test_every_hop_of_a_generated_story_is_one_span():
    for example in clutrr.load("ood", 200):
        words = [example.prompt[a:b] for a, b in example.signal_spans]
        assert len(words) == example.prompt.count(".")
        assert set(words) <= set(itertools.chain(*kinship.KINDS.values())) | set(kinship.FAMILIAR.values())


# The release's files


def row(**changes):
    return {
        "id": "a",
        "story": "[Ann]  took her son [Bo] to the zoo.\n[Bo] has a brother, [Cy].",
        "query": "('Ann', 'Cy')",
        "target": "son",
        "task_name": "task_1.2",
        "edge_types": "['son', 'brother']",
    } | changes


@pytest.fixture
def release(tmp_path):
    """A folder in the release's layout, with the rows given for some of its files; the others hold a good row each."""

    def write(**files):
        folder = tmp_path / "clutrr" / "gen_train23_test2to10"
        folder.mkdir(parents=True)
        for name, hops in [("1.2,1.3_train.csv", 2), *((f"1.{hops}_test.csv", hops) for hops in range(2, 11))]:
            good = row(
                story=f"[Ann] took her son [Bo] to the zoo {name}. [Bo] has a brother, [Cy].",
                task_name=f"task_1.{hops}",
                edge_types=str(["son"] * hops),
            )
            rows = files.get("train" if "train" in name else f"test_{hops}", [good])
            with (folder / name).open("w", newline="") as file:
                writer = csv.DictWriter(file, list(rows[0]) if rows else [])
                writer.writeheader()
                writer.writerows(rows)
        return tmp_path

    return write


def test_a_row_becomes_a_prompt(release):
    examples = clutrr.load("id", None, data_dir=release(test_2=[row()]), hops=[2])
    [example] = [example for example in examples if " zoo. " in example.prompt]
    story = "Ann took her son Bo to the zoo. Bo has a brother, Cy."
    assert example.prompt == f"{story}\nQuestion: How is Cy related to Ann?\nAnswer: Cy is Ann's"
    assert (example.target, example.split, example.source) == (" son", "id", "local")
    assert [example.prompt[a:b] for a, b in example.signal_spans] == ["son", "brother"]


def test_splits_of_a_folder(release):
    training = [row(story=f"[Ann] has {i} apples, a son [Bo] and [Cy].") for i in range(400)]
    folder = release(train=[*training, training[0]])
    train, held_out, ood = (clutrr.load(split, None, data_dir=folder) for split in ("train", "id", "ood"))
    assert len(ood) == 7
    of_training = [e for e in held_out if "apples" in e.prompt]
    assert len(held_out) == len(of_training) + 2
    assert len(train) + len(of_training) == 400, "a repeated row counts once and stays in one split"
    assert 20 <= len(of_training) <= 65
    assert not {e.prompt for e in train} & {e.prompt for e in held_out}
    assert clutrr.load("train", 5, 1, data_dir=folder) == clutrr.load(
        "train", 5, 1, source="local", data_dir=str(folder)
    )
    with pytest.raises(InputError, match="the ood split of clutrr has 7"):
        clutrr.load("ood", 8, data_dir=folder)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{"story": "a", "query": "b"}], r"Line 1 of .*1\.2_test\.csv.*'target'"),
        ([row(), row(id="b", target="")], "line 5 of .*'target'"),
        ([row(story=" ")], "line 2 of .*'story'"),
        *(
            ([row(query=query)], "line 3 of .*'query'")
            for query in ("(Ann, Cy)", "__import__('os').getcwd()", "('Ann', 'Ann')", "('Ann', 'Di')", "('Ann', 3)")
        ),
        ([row(target="cousin")], "line 3 of .*'target' .*'cousin'"),
        ([row(task_name="task_1.3")], r"line 3 of .*'task_name' .*'task_1\.3'"),
        ([row(task_name="two")], "line 3 of .*'task_name' .*'two'"),
        ([row(edge_types="['son']")], "line 3 of .*'edge_types'"),
        ([row(edge_types="son")], "'edge_types' .*'son'"),
        ([], "1.2_test.csv is empty"),
    ],
)
def test_a_bad_file_is_named_with_its_line(release, rows, words):
    folder = release(test_2=rows)
    with pytest.raises(InputError, match=words):
        clutrr.load("id", None, data_dir=folder)


# The Hub


@pytest.fixture
def hub(monkeypatch):
    """Replaces the Hub: its splits, with the columns of the conversion to Parquet."""

    def serve(**parts):
        def load_dataset(repo, config, *, data_dir, split, revision):
            assert (repo, data_dir, revision) == (clutrr.HUB_REPO, clutrr.HUB_CONFIG, clutrr.HUB_REVISION)
            return datasets.Dataset.from_list(parts[split])

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)

    return serve


def hub_row(name, hops=2, **changes):
    changed = row(
        story=f"[Ann] took [Bo] and [Cy] to the {name}.", task_name=f"task_1.{hops}", edge_types=str(["son"] * hops)
    )
    return changed | {"target": 1, "target_text": "son", "proof_state": "[]", "genders": "Ann:female"} | changes


def test_the_hub(hub):
    assert re.fullmatch("[0-9a-f]{40}", clutrr.HUB_REVISION)
    hub(
        train=[hub_row("zoo"), hub_row("park", 3), hub_row("fair")],
        validation=[hub_row("bank"), hub_row("fair")],
        test=[
            hub_row("pub", 2),
            hub_row("gym", 3),
            *(hub_row("sea", hops) for hops in range(4, 11)),
            hub_row("ice", 10),
        ],
    )

    def places(split, **options):
        examples = clutrr.load(split, None, source="hub", **options)
        assert {(e.split, e.source, e.target) for e in examples} == {(split, "hub", " son")}
        return {re.search(r"to the (\w+)\.", e.prompt)[1] for e in examples}

    assert places("train") == {"zoo", "park"}
    assert places("id") == {"bank", "fair", "pub", "gym"}
    assert places("id", hops=[3]) == {"gym"}
    assert places("ood") == {"sea", "ice"}


def test_a_bad_row_of_the_hub_is_named(hub):
    hub(test=[hub_row("sea", 4), hub_row("gym", 4, target_text="cousin")])
    with pytest.raises(InputError, match=r"row 1 of test, CLUTRR/v1, .*'target' .*'cousin'"):
        clutrr.load("ood", 1, source="hub")


# The real files


@pytest.mark.slow
def test_the_release(real_data):
    train, held_out, ood = (clutrr.load(split, None, data_dir=real_data) for split in ("train", "id", "ood"))
    # Of the 10,094 training rows 80 repeat another; 38 + 105 test rows have 2 and 3 hops.
    assert (len(train), len(held_out), len(ood)) == (8952, 10094 - 80 - 8952 + 38 + 105, 1003)
    assert len(clutrr.load("id", None, data_dir=real_data, hops=[2])) == 551
    by_hops = [len(clutrr.load("ood", None, data_dir=real_data, hops=[hops])) for hops in range(4, 11)]
    assert by_hops == [190, 174, 107, 144, 150, 119, 119]
    assert not {e.prompt for e in train} & {e.prompt for e in held_out}
    assert not any("[" in e.prompt for e in train)
    assert sum(bool(e.signal_spans) for e in train) > 0.999 * len(train)
    assert {e.target[1:] for e in train} == set(kinship.TARGETS)


@pytest.mark.slow
def test_the_release_proves_its_answers(real_data):
    """The file's own proof starts from (A, relation, B): the target is what B is to A, as the prompt asks."""
    proved = set()
    for path in sorted((real_data / "clutrr" / clutrr.HUB_CONFIG).glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                [first, relation, second] = next(iter(ast.literal_eval(line["proof_state"])[0]))
                story = " ".join(line["story"].replace("[", "").replace("]", "").split())
                proved.add((story, first, second, f" {relation}"))
    examples = [e for split in ("train", "id", "ood") for e in clutrr.load(split, None, data_dir=real_data)]
    for example in examples:
        story, second, first, _, _ = QUESTION.fullmatch(example.prompt).groups()
        assert (story, first, second, example.target) in proved
    assert len(proved) == len(examples)
