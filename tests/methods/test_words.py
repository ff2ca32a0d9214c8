"""Words in Arrow's columns against lists of strings."""

import numpy as np
import pyarrow as pa
import torch

from raydapt.artefacts.words import Words, column_of, shared, words_at

LIST = ["b", "a", "", "b", "ü"]
WORDS = Words(pa.chunked_array([pa.array(LIST[:2]), pa.array(LIST[2:])]))


def test_words_are_a_sequence_of_strings():
    assert list(WORDS) == LIST
    assert len(WORDS) == 5
    assert [WORDS[at] for at in (0, 4, -1)] == ["b", "ü", "ü"]
    assert WORDS[1:4] == LIST[1:4]
    assert "a" in WORDS
    assert WORDS.index("ü") == 4
    assert Words(column_of(LIST)) == WORDS
    assert Words(column_of(LIST[::-1])) != WORDS


def test_the_words_of_rows_are_those_of_the_list():
    row_M = [4, 0, -1, 3]
    expected = [LIST[row] if row >= 0 else None for row in row_M]
    for words in (WORDS, LIST):
        for rows in (torch.tensor(row_M), np.array(row_M)):
            assert words_at(words, rows).to_pylist() == expected


def test_shared_words_are_one_object():
    given = ["".join(["x", str(i % 2)]) for i in range(4)] + [None]
    found = shared(iter(given))
    assert found == given
    assert found[0] is found[2]
