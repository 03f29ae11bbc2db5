"""The hash of code follows what the code does, not its words."""

import pytest

from beatssl.fingerprint import normalised

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
