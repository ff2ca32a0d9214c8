import unicodedata

import pytest

from raydapt.data.spelling import loose, nearest, normal, position, prompt_name, same_name

SAME = [
    ("café", unicodedata.normalize("NFD", "café")),
    ("Ångström", unicodedata.normalize("NFD", "ångström")),
    ("AnnualCrop", "annual_crop"),
    ("F-16A/B", "F-16A-B"),
    ("polka-dotted", "Polka Dotted"),
    ("Curve (to the left)", "curve to the left"),
    ("colt's foot", "colts_foot"),
    ("STRASSE", "straße"),
    ("3 5", "3_5"),
    ("German Traffic Sign: Stop", "german traffic sign stop"),
    (" cat ", "cat"),
    ("X-ray", "xray"),
]
DIFFERENT = [
    ("C", "C++"),
    ("C", "C#"),
    ("C++", "C#"),
    ("A", "A-"),
    ("A+", "A-"),
    ("A", "A*"),
    ("-1", "1"),
    ("1.5 l", "15 l"),
    ("1,5", "15"),
    ("3-5", "35"),
    ("1:2", "12"),
    ("10%", "10"),
    ("x²", "x2"),
    ("cafe", "café"),
    ("Yahoo", "Yahoo!"),
    ("R&B", "RB"),
    ("salt", "salt & pepper"),
    ('5"', "5"),
    ("कि", "का"),
    ("はし", "ばし"),
    ("🚀", "🛸"),
    ("no.", "no"),
    (".net", "net"),
    ("{}", "()"),
    ("!", "?"),
    ("a", ""),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_spellings_of_one_name(one: str, other: str) -> None:
    assert loose(one) == loose(other)


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_names_that_differ_in_meaning(one: str, other: str) -> None:
    for form in ("NFC", "NFD"):
        assert loose(unicodedata.normalize(form, one)) != loose(unicodedata.normalize(form, other))


def test_exact_spellings() -> None:
    assert normal(unicodedata.normalize("NFD", " é")) == "é"
    assert prompt_name("polka_dot  x") == "polka dot x"
    assert same_name("A  b") == same_name("a B")
    assert same_name("ab") != same_name("a b")


NUMBERS = {"3": 3, "03": 3, "3.0": 3, "3.": 3, "٣": 3, " 3 ": 3}
NO_NUMBERS = ("3.5", "-1", "²", "", "1e3", "9" * 30)


@pytest.mark.parametrize(("label", "number"), [*NUMBERS.items(), *((text, None) for text in NO_NUMBERS)])
def test_numbers(label: str, number: int | None) -> None:
    assert position(label) == number


def test_the_nearest_name() -> None:
    assert nearest("dogg", ["cat", "dog"]) == "dog"
    assert nearest("DGO", ["cat", "dog"]) == "dog"
    assert nearest("submarine", ["cat", "dog"]) is None
