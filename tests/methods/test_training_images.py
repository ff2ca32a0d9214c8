"""What the methods see of the images: whole arrays are shared, not copied."""

from dataclasses import replace

import torch

from tests.methods.cases import training_images


def test_the_rows_of_unlabelled_images_are_the_array_itself_where_all_are():
    images = training_images("ul")
    assert images.of_unlabelled(images.feature_ND) is images.feature_ND
    some = training_images("ssl")
    torch.testing.assert_close(
        some.of_unlabelled(some.feature_ND)[:], torch.stack([some.feature_ND[i] for i in some.unlabelled_U.tolist()])
    )


def test_other_orders_and_fewer_images_are_read_by_their_rows():
    images = training_images("ul")
    for index_U in (images.unlabelled_U.flip(0), images.unlabelled_U[1:], images.unlabelled_U[:-1]):
        other = replace(images, unlabelled_U=index_U)
        torch.testing.assert_close(other.of_unlabelled(images.feature_ND)[:], images.feature_ND[index_U])
