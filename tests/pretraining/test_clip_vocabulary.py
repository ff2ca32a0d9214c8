"""Which text is a mistake for which image: the masks and the loss against naive loops."""

import pytest
import torch

from pretraining.clip_model import class_text_loss
from pretraining.clip_vocabulary import Concept, Vocabulary, broaden

CONCEPTS = [
    Concept(domain="photos", names=("dog",)),
    Concept(domain="photos", names=("chihuahua", "dog")),
    Concept(domain="photos", names=("golden retriever", "dog")),
    Concept(domain="photos", names=("forest",)),
    Concept(domain="aerial", names=("forest", "woodland", "trees")),
    Concept(domain="aerial", names=("lake", "sea or lake", "water")),
    Concept(domain="aerial", names=("river", "stream")),
    Concept(domain="aerial", names=("river or lake", "lake", "river", "water")),
    Concept(domain="digits", names=("zero", "0")),
]


def naive_is_wrong(image: Concept, text: Concept, name: str) -> bool:
    """Whether calling an image of one concept by a name drawn for another is a mistake."""
    if image == text or name in image.names:
        return False
    return text.label not in image.names and image.label not in text.names


@pytest.mark.parametrize("seed", range(5))
def test_negatives_match_a_naive_loop(seed: int) -> None:
    vocabulary = Vocabulary(CONCEPTS)
    name_C = vocabulary.draw_names(torch.Generator().manual_seed(seed))
    wrong_CC = vocabulary.allowed_negatives(name_C)
    for i, image in enumerate(vocabulary.concepts):
        for j, text in enumerate(vocabulary.concepts):
            name = vocabulary.names[int(name_C[j])]
            assert name in text.names
            assert bool(wrong_CC[i, j]) == naive_is_wrong(image, text, name), (image, name)


def test_breeds_are_contrasted_but_none_is_contrasted_with_dog() -> None:
    vocabulary = Vocabulary(CONCEPTS)
    labels_C = torch.tensor([vocabulary.names.index(concept.label) for concept in vocabulary.concepts])
    wrong_CC = vocabulary.allowed_negatives(labels_C)
    dog, chihuahua, retriever = (vocabulary.index["photos", name] for name in ("dog", "chihuahua", "golden retriever"))
    assert wrong_CC[chihuahua, retriever]
    assert not wrong_CC[chihuahua, dog]
    assert not wrong_CC[dog, chihuahua]


def test_all_names_are_drawn() -> None:
    vocabulary = Vocabulary(CONCEPTS)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.stack([vocabulary.draw_names(generator, label_share=0.0) for _ in range(200)])
    for at, concept in enumerate(vocabulary.concepts):
        assert {vocabulary.names[int(name)] for name in drawn[:, at]} == set(concept.names)


@pytest.mark.parametrize("images", [1, 7])
def test_class_text_loss_matches_a_naive_loop(images: int) -> None:
    generator = torch.Generator().manual_seed(images)
    vocabulary = Vocabulary(CONCEPTS)
    wrong_CC = vocabulary.allowed_negatives(vocabulary.draw_names(generator))
    count = len(vocabulary.concepts)
    concept_N = torch.randint(count, (images,), generator=generator)
    logits_NC = torch.randn(images, count, generator=generator)
    total = 0.0
    for image in range(images):
        own = int(concept_N[image])
        kept = [j for j in range(count) if j == own or wrong_CC[own, j]]
        total += float(torch.logsumexp(logits_NC[image, kept], 0) - logits_NC[image, own])
    loss = class_text_loss(logits_NC, concept_N, wrong_CC)
    assert float(loss) == pytest.approx(total / images, rel=1e-5)


def test_broaden_adds_everyday_words_once_and_lowers() -> None:
    assert broaden("Chihuahua", ["Chihuahua"]) == ("chihuahua", "dog")
    assert broaden("faces", ["faces"]) == ("faces", "person", "face")
    assert broaden("abacus", ["abacus"]) == ("abacus",)
