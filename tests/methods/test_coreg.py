import copy
from dataclasses import replace

import pytest
import torch

from raydapt.methods.contract import Batch
from raydapt.methods.coreg import method as coreg_module
from raydapt.methods.coreg.losses import sharpen
from raydapt.methods.coreg.memory import CoMemory
from raydapt.train.place import WorkerContext
from tests.methods.coreg_cases import CLASSES, SETTINGS, TRAIN, coreg_images, coreg_method, train_coreg
from tests.train.test_loop import MemoryCheckpoints


def same_state(first, second):
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole():
    return train_coreg(MemoryCheckpoints())


def test_learns_divides_and_fills_its_memory(whole):
    method, state = whole
    memory, images = method.memory, coreg_images()
    assert state.finished
    assert [line["epoch"] for line in state.lines] == [1, 2, 3, 4]
    assert int(memory.n_losses) == 3
    assert int(memory.n_keys) == 2 * 3 * 8  # the contrast takes part in the last two epochs, of three steps each
    assert memory.trace_epoch_T.tolist() == [1, 2, 3]
    assert (memory.answer_T2N >= 0).all()
    first, second = (student.head.weight for student in method.students)
    assert not torch.equal(first, second)  # two students, not one twice
    right = (method.eval().logits(images.pixels.pixel_R3SS).argmax(1) == torch.arange(30) % CLASSES).float().mean()
    assert right > 0.5


@pytest.mark.parametrize(("epoch_images", "times"), [(0, 1), (30, 1), (31, 2), (75, 3)])
def test_a_small_set_is_dealt_out_several_times_an_epoch(epoch_images, times):
    method = coreg_method(coreg_images(30), replace(SETTINGS, epoch_images=epoch_images))
    (stream,) = method.begin_round(1, lambda _: pytest.fail("no image is looked at"))
    assert torch.equal(torch.bincount(stream.index_M, minlength=30), torch.full((30,), times))
    assert stream.target_MC.shape == (30 * times, 0)
    assert torch.equal(method.pseudo_labels.index_M, torch.arange(30))


@pytest.mark.slow
def test_the_seed_decides_on_everything(whole):
    again, _ = train_coreg(MemoryCheckpoints())
    assert same_state(whole[0], again)
    other, _ = train_coreg(MemoryCheckpoints(), seed=2)
    assert not same_state(whole[0], other)


@pytest.mark.slow
@pytest.mark.parametrize("die_after", [1, 2, 3])
def test_killed_in_the_middle_and_resumed_gives_the_same_students_queues_and_losses(whole, die_after):
    killed = MemoryCheckpoints(die_after=die_after)
    with pytest.raises(KeyboardInterrupt):
        train_coreg(killed)
    resumed, state = train_coreg(MemoryCheckpoints(latest=killed.saved[-1]))
    assert same_state(whole[0], resumed)
    assert [line["loss"] for line in state.lines] == [line["loss"] for line in whole[1].lines]


def test_resumes_within_an_epoch(whole, monkeypatch):
    monkeypatch.setattr("raydapt.train.loop._STEPS_BETWEEN_CLOCKS", 1)
    killed = MemoryCheckpoints(die_after=8)  # two steps into the third epoch, with the contrast at work
    with pytest.raises(KeyboardInterrupt):
        train_coreg(killed)
    resumed, _ = train_coreg(MemoryCheckpoints(latest=killed.saved[-1]))
    assert same_state(whole[0], resumed)


def test_predicts_from_a_checkpoint_without_training_images(whole):
    plain = coreg_method(None)
    plain.load_state_dict(whole[1].method)
    pixel = coreg_images().pixels.pixel_R3SS
    assert torch.equal(plain.eval().logits(pixel), whole[0].eval().logits(pixel))


@pytest.mark.parametrize(
    "settings",
    [
        replace(SETTINGS, mixup=0.0, weak_views=1, strong_views=1),
        replace(SETTINGS, co_pseudo_labels=False),
        replace(SETTINGS, align_guesses=True),
        replace(SETTINGS, contrast="sup"),
        replace(SETTINGS, contrast="none", prototype_weight=0.0),
        replace(SETTINGS, unlabelled_weight=0.0, unlabelled_error="mean"),
        replace(SETTINGS, distribution_alignment=False, clean_threshold=1.0),  # no image is confident
        replace(SETTINGS, clean_threshold=0.0),  # all images are
    ],
    ids=[
        "small recipe",
        "no co-pseudo-labels",
        "aligned guesses",
        "sup",
        "no contrast",
        "no unlabelled",
        "none confident",
        "all confident",
    ],
)
def test_every_switch_trains(settings):
    method, state = train_coreg(MemoryCheckpoints(), settings=settings)
    assert state.finished
    assert all(value.isfinite().all() for value in method.state_dict().values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("n", "candidates"),
    [(30, [1.0, 1, 1]), (30, [0.0, 1, 0]), (30, [1.0, 0, 1]), (3, None), (2, None)],
    ids=["all candidates", "one for all", "an empty class", "fewer than a batch", "two images"],
)
def test_degenerate_sets_train_without_a_crash(n, candidates):
    candidate_NC = None if candidates is None else torch.tensor(candidates).repeat(n, 1)
    method, state = train_coreg(MemoryCheckpoints(), coreg_images(n, candidate_NC=candidate_NC))
    assert state.finished
    assert all(value.isfinite().all() for value in method.state_dict().values())


@pytest.mark.parametrize("align", [False, True])
def test_co_pseudo_labels_equal_a_loop(align):
    method = coreg_method(coreg_images(), replace(SETTINGS, align_guesses=align))
    memory = method.memory
    memory.clean_2N.copy_(torch.rand(2, 30))
    label_2NC = torch.rand(2, 30, CLASSES).softmax(-1) * method.candidates.dense(torch.arange(30))
    memory.label_2NK.copy_(method.candidates.of(label_2NC))
    memory.share_2C.copy_(torch.rand(2, CLASSES).softmax(-1))
    index_B, given_2BC = torch.tensor([4, 0, 29, 11]), torch.randn(2, 4, CLASSES).softmax(-1)
    guess_2BC = given_2BC.clone()
    for i, b in ((i, b) for i in (0, 1) for b in range(4) if align):
        weighed = [float(given_2BC[i, b, c] / memory.share_2C[i, c]) for c in range(CLASSES)]
        guess_2BC[i, b] = torch.tensor(weighed) / sum(weighed)
    for i in (0, 1):
        taught = method._student_targets(i, index_B, given_2BC)
        for b, n in enumerate(index_B.tolist()):
            w = memory.clean_2N[i, n]
            if w > 0.5:
                label = w * label_2NC[i, n] + (1 - w) * guess_2BC[i, b]
            else:
                label = (guess_2BC[0, b] + guess_2BC[1, b]) / 2
            assert bool(taught.partial_B[b]) == bool(w > 0.5)
            torch.testing.assert_close(taught.target_BC[b], sharpen(label[None], 0.5)[0])


def test_each_student_divides_and_labels_for_its_partner():
    method = coreg_method(coreg_images(), replace(SETTINGS, distribution_alignment=False))
    probability_2NC = torch.randn(2, 30, CLASSES).softmax(-1)
    method._divide(probability_2NC)
    for i in (0, 1):
        torch.testing.assert_close(method.memory.share_2C[i], sum(probability_2NC[i]) / 30)
        by = torch.from_numpy(coreg_images().partial.candidate_NC.toarray()) * probability_2NC[i]
        label_NC = method.candidates.dense(torch.arange(30), method.memory.label_2NK[1 - i])
        torch.testing.assert_close(label_NC, by / by.sum(1, keepdim=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_students_with_a_gpu_each_learn_what_they_do_on_one():
    place = WorkerContext(device=torch.device("cuda", 0))
    alone, _ = train_coreg(MemoryCheckpoints(), place=place, still=True)
    apart, _ = train_coreg(
        MemoryCheckpoints(), settings=replace(SETTINGS, gpu_per_student=True), place=place, still=True
    )
    assert [student.device.index for student in apart.students] == [0, 1]
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(apart.state_dict()[name].cpu(), value.cpu(), rtol=1e-3, atol=1e-4, msg=name)


def test_labelled_images_keep_their_label():
    images = replace(coreg_images(), labelled_L=torch.tensor([0, 1]), label_L=torch.tensor([2, 0]))
    method, _ = train_coreg(MemoryCheckpoints(), images)
    assert method.memory.clean_2N[:, :2].tolist() == [[1.0, 1.0]] * 2
    labels = [method.candidates.dense(torch.arange(2), label_NK) for label_NK in method.memory.label_2NK]
    assert [label_NC.argmax(1).tolist() for label_NC in labels] == [[2, 0]] * 2


def test_the_queue_keeps_the_newest_keys_of_each_student():
    memory = CoMemory(4, 3, places=2, queue=5, epochs=2)
    naive: list[list[tuple[float, int, bool]]] = [[], []]
    for step, size in enumerate((3, 3, 1, 7)):
        new = torch.arange(2 * size, dtype=torch.float32).view(2, size) + 100 * step
        class_2K, partial_2K = (new % 3).long(), new % 2 == 0
        memory.enqueue(new[..., None].expand(-1, -1, 128), class_2K, partial_2K)
        for i in (0, 1):
            naive[i] += list(zip(new[i].tolist(), class_2K[i].tolist(), partial_2K[i].tolist(), strict=True))
            key_KD, class_K, flag_K = memory.keys(i)
            held = list(zip(key_KD[:, 0].tolist(), class_K.tolist(), flag_K.tolist(), strict=True))
            assert sorted(held) == sorted(naive[i][-5:])


def test_losses_are_averaged_over_the_last_five_epochs():
    memory, seen = CoMemory(6, 3, places=2, queue=5, epochs=2), []
    for epoch in range(8):
        seen.append(torch.full((2, 6), float(epoch)))
        torch.testing.assert_close(memory.remember_losses(seen[-1]), torch.stack(seen[-5:]).mean(0))


def test_a_long_training_is_traced_at_most_fifty_times():
    memory = CoMemory(2, 3, places=2, queue=5, epochs=800)
    for epoch in range(1, 801):
        memory.trace(epoch, epoch + 49, torch.full((2, 2), epoch % 3))
    assert len(memory.trace_epoch_T) == 50
    assert memory.trace_epoch_T[-1] == 849
    assert (memory.answer_T2N >= 0).all()


def test_the_schedule_ends_at_the_share_that_is_left():
    train = replace(TRAIN, final_rate_share=0.5)
    _, state = train_coreg(MemoryCheckpoints(), train=train)
    assert state.lines[-1]["learning_rate"] == pytest.approx(0.5 * 0.05, rel=0.05)


@pytest.mark.parametrize("soft", [False, True])
def test_candidate_sets_are_kept_without_a_matrix_and_in_no_checkpoint(soft):
    images = coreg_images(30, candidate_NC=torch.rand(30, CLASSES) if soft else None)
    candidate_NC = torch.from_numpy(images.partial.candidate_NC.toarray())
    method = coreg_method(images)
    index_B = torch.tensor([4, 0, 29, 4])
    torch.testing.assert_close(method.candidates.dense(index_B), candidate_NC[index_B])
    torch.testing.assert_close(torch.from_numpy(method.candidates.sparse().toarray()), candidate_NC)
    stream = method.begin_round(1, None)[0]
    assert stream.target_MC.shape == (30, 0)
    assert method.pseudo_labels.target_MC.nnz == int((candidate_NC > 0).sum())
    assert method.pseudo_labels.class_M.tolist() == candidate_NC.max(1).indices.tolist() or not soft
    assert not [name for name in method.state_dict() if name.startswith("candidates.")]
    assert method.memory.label_2NK.shape[2] == int((candidate_NC > 0).sum(1).max())


def test_a_partner_answers_in_evaluation_mode_and_moves_no_running_statistics(monkeypatch):
    method = coreg_method(coreg_images(), replace(SETTINGS, mixup=0.0)).train()
    monkeypatch.setattr(method.augmentation.__class__, "weak", lambda self, image: self.plain(image))
    index_B = torch.arange(6)
    image_B = coreg_images().pixels.take(index_B)
    plain = method.augmentation.plain(image_B)
    own, partner = [], []
    for student in method.students:
        twin = copy.deepcopy(student)
        own.append(twin.train()(plain)[0].softmax(-1))
        partner.append(copy.deepcopy(student).eval()(plain)[0].softmax(-1))
    seen = []
    targets = method._student_targets
    monkeypatch.setattr(
        method, "_student_targets", lambda i, index_B, guess: seen.append(guess.clone()) or targets(i, index_B, guess)
    )
    method.memory.epoch.fill_(method.settings.warmup_epochs + 1)
    method({"images": Batch(image_B=image_B, target_BC=torch.zeros(6, 0), index_B=index_B)})
    for i in (0, 1):
        torch.testing.assert_close(seen[i][1 - i], partner[1 - i])
        assert not torch.allclose(partner[i], own[i], atol=1e-3)
    before = {name: value.clone() for name, value in method.students[0].named_buffers()}
    method._as_partner(method.students[0], (plain, plain))
    assert all(torch.equal(before[name], value) for name, value in method.students[0].named_buffers())
    assert method.students[0].training


def test_the_momentum_copies_start_every_epoch_of_co_training_anew():
    method = coreg_method(coreg_images())
    for parameter in method.momentum.parameters():
        parameter.add_(1.0)
    uniform = torch.full((30, 2, CLASSES), 1 / CLASSES)
    method.begin_epoch(1, method.settings.warmup_epochs, lambda function: uniform)
    first = next(method.students.parameters())
    assert not torch.equal(next(method.momentum.parameters()), first)  # still the warm-up
    method.begin_epoch(1, method.settings.warmup_epochs + 1, lambda function: uniform)
    for mine, theirs in zip(method.momentum.parameters(), method.students.parameters(), strict=True):
        assert torch.equal(mine, theirs)


def test_the_ramp_is_for_consistency_and_not_for_prototypes(monkeypatch):
    weights = {}

    def note(name, loss):
        def noted(*arguments, unlabelled_weight, **others):
            weights[name] = unlabelled_weight
            return loss(*arguments, unlabelled_weight=unlabelled_weight, **others)

        monkeypatch.setattr(coreg_module, name, noted)

    note("consistency_loss", coreg_module.consistency_loss)
    note("prototype_loss", coreg_module.prototype_loss)
    settings = replace(SETTINGS, start_contrast=0, unlabelled_ramp=16)
    method = coreg_method(coreg_images(), settings).train()
    method.memory.epoch.fill_(settings.warmup_epochs + 4)
    index_B = torch.arange(6)
    image_B = coreg_images().pixels.take(index_B)
    method({"images": Batch(image_B=image_B, target_BC=torch.zeros(6, 0), index_B=index_B)})
    assert weights == {"consistency_loss": 4 / 16, "prototype_loss": 1.0}


def test_what_is_kept_has_shared_running_statistics(monkeypatch):
    shared = []
    monkeypatch.setattr(coreg_module, "share_running_statistics", lambda model: shared.append(model))
    method = coreg_method(coreg_images())
    method.end_round(1)
    assert shared == [method.students]
