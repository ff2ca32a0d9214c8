"""What Co-Reg remembers between steps, all of it part of the checkpoint. The first axis is always the student.

Legend: N training images, C classes, E epochs remembered, T epochs traced, Q length of the queue, D width, K new keys.
"""

import torch
from torch import Tensor, nn

from raydapt.models.students import PROJECTION_WIDTH

LOSS_EPOCHS = 5
"""Epochs whose losses are averaged for the division."""
_MOST_TRACES = 50


class CoMemory(nn.Module):
    """LabelSplit, partner labels, queues, prototypes and a trace of both students' answers.

    Args:
        n_images: N.
        n_classes: C.
        places: Most candidates of an image.
        queue: Q.
        epochs: Epochs of co-training, for the trace.
    """

    epoch: Tensor
    """1-based epoch of the run."""
    loss_2EN: Tensor
    """Scaled losses of the last epochs; the first `n_losses` rows count."""
    n_losses: Tensor
    clean_2N: Tensor
    """Probability that a partial label is right, as judged for this student (by its partner)."""
    label_2NK: Tensor
    """The partner's label at the places of the candidates."""
    share_2C: Tensor
    """Mean prediction of each student over all images at the start of the epoch."""
    key_2QD: Tensor
    key_class_2Q: Tensor
    key_partial_2Q: Tensor
    n_keys: Tensor
    """Keys ever enqueued; the next one goes to this number mod Q."""
    prototype_CD: Tensor
    answer_T2N: Tensor
    """int16 class of each student for every image at the start of the traced epochs; -1 where not yet."""
    trace_epoch_T: Tensor

    def __init__(self, n_images: int, n_classes: int, *, places: int, queue: int, epochs: int) -> None:
        super().__init__()
        traces = max(1, min(epochs, _MOST_TRACES))
        self.epochs = max(1, epochs)
        buffers = {
            "epoch": torch.zeros((), dtype=torch.int64),
            "loss_2EN": torch.zeros(2, LOSS_EPOCHS, n_images),
            "n_losses": torch.zeros((), dtype=torch.int64),
            "clean_2N": torch.zeros(2, n_images),
            "share_2C": torch.full((2, n_classes), 1.0 / n_classes),
            "label_2NK": torch.zeros(2, n_images, places),
            "key_2QD": torch.zeros(2, queue, PROJECTION_WIDTH),
            "key_class_2Q": torch.zeros(2, queue, dtype=torch.int64),
            "key_partial_2Q": torch.zeros(2, queue, dtype=torch.bool),
            "n_keys": torch.zeros((), dtype=torch.int64),
            "prototype_CD": torch.zeros(n_classes, PROJECTION_WIDTH),
            "answer_T2N": torch.full((traces, 2, n_images), -1, dtype=torch.int16),
            "trace_epoch_T": torch.zeros(traces, dtype=torch.int64),
        }
        for name, tensor in buffers.items():
            self.register_buffer(name, tensor)

    def remember_losses(self, loss_2N: Tensor) -> Tensor:
        """Adds an epoch's losses and returns the mean [2, N] over the last epochs."""
        row = int(self.n_losses) % LOSS_EPOCHS
        self.loss_2EN[:, row] = loss_2N.to(self.loss_2EN)
        self.n_losses += 1
        filled = min(int(self.n_losses), LOSS_EPOCHS)
        return self.loss_2EN[:, :filled].mean(1)

    def trace(self, epoch: int, epoch_of_run: int, answer_2N: Tensor) -> None:
        """Keeps both students' answers; of epochs that share a row the last one stays.

        Args:
            epoch: 1-based epoch of co-training.
            epoch_of_run: Epochs that were finished when the answers were given.
            answer_2N: Their classes.
        """
        row = (epoch - 1) * len(self.answer_T2N) // self.epochs
        self.answer_T2N[row] = answer_2N.to(self.answer_T2N)
        self.trace_epoch_T[row] = epoch_of_run

    def keys(self, student: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys [K, D], their classes and whether they are of the partial split, as far as the queue is filled."""
        filled = min(int(self.n_keys), self.key_2QD.shape[1])
        return (
            self.key_2QD[student, :filled],
            self.key_class_2Q[student, :filled],
            self.key_partial_2Q[student, :filled],
        )

    def enqueue(self, key_2KD: Tensor, class_2K: Tensor, partial_2K: Tensor) -> None:
        """Puts new keys in the place of the oldest; of more than the queue holds the last ones stay."""
        length, new = self.key_2QD.shape[1], key_2KD.shape[1]
        place_K = ((int(self.n_keys) + torch.arange(new)) % length)[-length:].to(key_2KD.device)
        self.key_2QD[:, place_K] = key_2KD[:, -length:]
        self.key_class_2Q[:, place_K] = class_2K[:, -length:]
        self.key_partial_2Q[:, place_K] = partial_2K[:, -length:]
        self.n_keys += new
