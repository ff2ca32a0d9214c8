import torch

from raydapt.models.joint_prompt import JointPrompt


def test_both_prompts_depend_on_both_and_keep_their_sizes():
    joint = JointPrompt(32, 48, seed=0)
    context_LD = torch.randn(4, 32, requires_grad=True)
    prompt_VD = torch.randn(3, 48, requires_grad=True)
    text_LD, vision_VD = joint(context_LD, prompt_VD)
    assert text_LD.shape == (4, 32)
    assert vision_VD.shape == (3, 48)
    for output in (text_LD[0], vision_VD[2]):
        for gradient in torch.autograd.grad(output.sum(), (context_LD, prompt_VD), retain_graph=True):
            assert (gradient.abs().sum(dim=1) > 0).all()


def test_reset_draws_the_same_weights_for_the_same_seed_and_leaves_the_global_generator_alone():
    joint = JointPrompt(8, 12, seed=0)
    first = {key: value.clone() for key, value in joint.state_dict().items()}
    state = torch.get_rng_state()
    joint.reset(1)
    assert any(not torch.equal(value, first[key]) for key, value in joint.state_dict().items())
    joint.reset(0)
    assert all(torch.equal(value, first[key]) for key, value in joint.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
