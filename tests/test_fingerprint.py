"""The hash of code follows what the code does, not its words."""

import pytest

from beatssl.fingerprint import by_module, closure, code_hash, code_of, name_of, normalised
from beatssl.tasks import classify, scores

BASE = "def f(x):\n    return x + 1\n"


@pytest.mark.parametrize(
    "same",
    [
        'def f(x):\n    """Words."""\n    return x + 1\n',
        '"""Module."""\n\n\ndef f(x):  # why\n    return (x\n            + 1)\n',
    ],
)
def test_words_and_layout_do_not_matter(same):
    assert normalised(same) == normalised(BASE)


@pytest.mark.parametrize(
    "other",
    [
        "def f(x):\n    return x + 2\n",
        "def f(x=0):\n    return x + 1\n",
        'def f(x):\n    "a"\n    return x + 1, "text that is no docstring"\n',
    ],
)
def test_code_does(other):
    assert normalised(other) != normalised(BASE)


def test_a_function_of_words_only_is_still_a_function():
    assert normalised('def f():\n    """Words."""\n') == normalised("def f():\n    pass\n")


def test_what_code_outside_the_package_reaches(tmp_path):
    """By module: what is named alone counts, and an entry of a registry does, unlike in a key."""
    (tmp_path / "beatssl").mkdir()
    (tmp_path / "beatssl" / "__init__.py").write_text("")
    low = tmp_path / "beatssl" / "low.py"
    low.write_text("def one():\n    return 1\n\ndef two():\n    return 2\n\nTASKS = {2: two}\n")
    (tmp_path / "beatssl" / "high.py").write_text("from .low import one as first\n")
    sources = {
        "one": "from beatssl import high as h\nprint(h.first())",
        "same": "import beatssl.low\n\ndef own(x):\n    return beatssl.low.one() + x\n\nown(1)",
        "two": "from beatssl.low import TASKS\nTASKS[2]()",
        "nothing": "import numpy as np\nnp.zeros(3)",
    }
    before = {name: by_module([source], tmp_path) for name, source in sources.items()}
    assert before["one"] == before["same"] and set(before["one"]) == {"beatssl.low"}
    assert before["nothing"] == {} and before["two"] != before["one"]
    low.write_text(low.read_text().replace("return 2", "return 3"))
    after = {name: by_module([source], tmp_path) for name, source in sources.items()}
    assert [name for name in sources if before[name] != after[name]] == ["two"]
    assert closure("beatssl.low.one", "beatssl.high.first", root=tmp_path).keys() == {
        "beatssl.low.one"
    }
    assert "beatssl.low.two" not in closure("beatssl.low.one", "beatssl.low.TASKS", root=tmp_path)


def mean():
    class Head:
        def pool(self, x):
            return x.mean()

    return Head


def mean_in_other_words():
    class Head:
        """Pools."""

        def pool(self, x):  # over time
            return x.mean()

    return Head


def largest():
    class Head:
        def pool(self, x):
            return x.max()

    return Head


def test_what_a_test_or_a_notebook_defines_counts_by_its_source():
    head, same, other = (code_of(make()) for make in (mean, mean_in_other_words, largest))
    assert head == same != other
    mixed = {code_of(classify.predictor, make()) for make in (mean, largest)}
    assert len(mixed | {head, other, code_of(classify.predictor)}) == 5
    assert code_of(mean(), largest()) == code_of(largest(), mean())


def test_code_of_things_of_the_package_is_that_of_their_names():
    things = classify.predictor, scores.thresholds
    assert code_of(*things) == code_hash(*map(name_of, things))
