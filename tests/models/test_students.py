import pytest
import torch

from raydapt.errors import UserError
from raydapt.models.clip import load_clip
from raydapt.models.students import Student, n_deployed_parameters, update_ema


@pytest.mark.parametrize("name", ["mini", "preact_resnet18", "wide_resnet10_1", "timm/resnet10t"])
def test_every_kind_of_student_gives_logits_and_unit_vectors(name):
    student = Student(name, 3)
    image_B3SS = torch.randn(2, 3, 32, 32)
    logits_BC, projected_BD = student(image_B3SS)
    assert logits_BC.shape == (2, 3)
    assert projected_BD.shape == (2, 128)
    torch.testing.assert_close(projected_BD.norm(dim=1), torch.ones(2))
    student.eval()
    torch.testing.assert_close(student(image_B3SS)[0], student.classify(image_B3SS))


def test_the_published_networks_have_their_published_sizes():
    assert n_deployed_parameters(Student("preact_resnet18", 10)) == pytest.approx(11.17e6, rel=0.01)
    assert n_deployed_parameters(Student("wide_resnet28_10", 10)) == pytest.approx(36.5e6, rel=0.01)


def test_two_mini_students_are_less_than_half_of_the_miniature_clips_image_tower():
    tower = sum(p.numel() for p in load_clip("mini").model.visual.parameters())
    assert 2 * n_deployed_parameters(Student("mini", 10)) < tower / 2


@pytest.mark.parametrize(
    ("name", "pretrained", "words"),
    [
        ("resnet", False, "coreg.student='resnet' is no student"),
        ("wide_resnet11_2", False, "6 n \\+ 4"),
        ("timm/nothing", False, "cannot be made"),
        ("mini", True, "coreg.pretrained"),
    ],
)
def test_a_wrong_student_is_one_sentence(name, pretrained, words):
    with pytest.raises(UserError, match=words):
        Student(name, 3, pretrained=pretrained)


def test_a_momentum_copy_follows_slowly():
    leader, copy = Student("mini", 3), Student("mini", 3)
    before = {name: value.clone() for name, value in copy.named_parameters()}
    leader(torch.randn(4, 3, 16, 16))
    update_ema(copy, leader, 0.9)
    for (name, own), other in zip(copy.named_parameters(), leader.parameters(), strict=True):
        torch.testing.assert_close(own, 0.9 * before[name] + 0.1 * other)
    for own, other in zip(copy.buffers(), leader.buffers(), strict=True):
        assert torch.equal(own, other)


def test_the_published_residual_network_halves_images_of_64_px_in_its_first_stage():
    """So the last maps are 4 x 4, which its code averages, at both sizes."""
    for image_px in (32, 64):
        network = Student("preact_resnet18", 3, image_px=image_px).backbone
        maps = network.blocks(network.stem(torch.zeros(1, 3, image_px, image_px)))
        assert maps.shape == (1, 512, 4, 4)
