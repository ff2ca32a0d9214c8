import torch

from raydapt.methods.even_sample import even_sample


def test_few_rows_are_all_taken_and_many_evenly_with_both_ends() -> None:
    row_N = torch.arange(100, 110)
    assert torch.equal(even_sample(row_N, 10), row_N)
    assert torch.equal(even_sample(row_N, 99), row_N)
    assert even_sample(row_N, 4).tolist() == [100, 103, 106, 109]


def test_places_among_so_many_rows_that_float32_cannot_count_them() -> None:
    row_N = torch.arange(2**25 + 3, dtype=torch.int32)
    assert even_sample(row_N, 3).tolist() == [0, 2**24 + 1, 2**25 + 2]
