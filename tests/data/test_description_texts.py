import pytest

from raydapt.data.description_texts import (
    QUESTIONS,
    clean_answer,
    descriptions_of,
    distinct,
    questions_of,
    with_article,
)


def test_the_questions_are_laftes_five_or_one_for_a_list():
    asked = questions_of("oak", form="questions", sentences=3)
    assert len(asked) == len(QUESTIONS) == 5
    assert asked[0] == "Describe what an oak looks like"
    assert all("an oak" in question for question in asked)
    (question,) = questions_of("birch", form="list", sentences=7)
    assert question.startswith("List 7 short")
    assert "a birch looks like" in question
    assert with_article("Elm") == "an Elm"
    assert "{}" not in questions_of("a {} b", form="list", sentences=3)[0].replace("a {} b", "")


@pytest.mark.parametrize(
    ("line", "kept"),
    [
        ("1. a broad tree with lobed leaves", "a broad tree with lobed leaves"),
        ("- **an oak** with a thick trunk", "an oak with a thick trunk"),
        ("(3) rough brown bark", "rough brown bark"),
        ('"a tree full of acorns"', "a tree full of acorns"),
        ("• a   tree\twith a wide crown", "a tree with a wide crown"),
        ("a <b>wide</b> crown of leaves", "a wide crown of leaves"),
        ("un chêne au tronc épais", "un chêne au tronc épais"),
        ("Sure! Here are some descriptions of an oak", None),
        ("Here are 5 descriptions:", None),
        ("Typical features of the oak:", None),
        ("ok", None),
        ("12 34 56 78 ab", None),
        ("", None),
        ("word " * 70, None),
        ("x" * 2000, None),
    ],
)
def test_a_line_of_a_list_is_kept_without_its_marks_or_left_out(line, kept):
    assert clean_answer(line, form="list", cut=False) == ([] if kept is None else [kept])


def test_prose_is_cut_into_sentences_and_an_unfinished_one_is_dropped():
    answer = "An oak is a broad tree.\nIts leaves have round lobes! It often carr"
    whole = ["An oak is a broad tree.", "Its leaves have round lobes!"]
    assert clean_answer(answer, form="questions", cut=True) == whole
    assert clean_answer(answer, form="questions", cut=False) == [*whole, "It often carr"]
    assert clean_answer("a tree that has no end", form="questions", cut=True) == ["a tree that has no end"]


def test_control_characters_do_not_survive():
    (text,) = clean_answer("a tree\x00 with\x1b[31m red\u2028 leaves", form="questions", cut=False)
    assert text.isprintable()


def test_what_differs_by_case_and_punctuation_alone_is_said_once():
    assert distinct(["A red tree.", "a red  tree", "A Red-Tree!", "a green tree"], most=9) == [
        "A red tree.",
        "a green tree",
    ]
    assert distinct(["one tree", "two trees", "three"], most=2) == ["one tree", "two trees"]


def test_the_descriptions_of_a_class_are_those_of_all_answers_in_order():
    answers = ["A large tree. A large tree.", "a LARGE tree. With many leaves.", "", "!!"]
    found = descriptions_of(answers, form="questions", cut=[False] * 4, most=10)
    assert found == ["A large tree.", "With many leaves."]
    assert descriptions_of(answers, form="questions", cut=[False] * 4, most=10) == found
