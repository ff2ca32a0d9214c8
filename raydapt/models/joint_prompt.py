"""UPT: text and visual prompt tokens that a small transformer couples.

Legend: L text prompt tokens, V visual prompt tokens, D width of the tower that reads them, E width of the coupling.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

WIDTH = 128


class JointPrompt(nn.Module):
    """Couples the prompts of the two towers: one transformer layer with one head over all prompt tokens.

    Both prompts are projected to width 128, attend to one another, and are projected back to the width of their
    tower (UPT as in GRIP, which uses 4 + 4 tokens; its public code lets token i of one prompt attend to token i of the
    other alone, here all tokens attend to all, as the method's paper has it).

    Args:
        text_width: Width of the text tower.
        vision_width: Width of the image tower.
        seed: Of the initial weights.
    """

    def __init__(self, text_width: int, vision_width: int, *, seed: int) -> None:
        super().__init__()
        self._widths = (text_width, vision_width)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.text_in = nn.Linear(text_width, WIDTH)
            self.vision_in = nn.Linear(vision_width, WIDTH)
            self.layer = nn.TransformerEncoderLayer(
                WIDTH, nhead=1, dim_feedforward=4 * WIDTH, dropout=0.0, batch_first=True, norm_first=True
            )
            self.text_out = nn.Linear(WIDTH, text_width)
            self.vision_out = nn.Linear(WIDTH, vision_width)

    def reset(self, seed: int) -> None:
        """Draws all weights anew; the same seed gives the same weights on every device."""
        self.load_state_dict(JointPrompt(*self._widths, seed=seed).state_dict())

    def forward(self, context_LD: Tensor, prompt_VD: Tensor) -> tuple[Tensor, Tensor]:
        """The prompts that the towers read: [L, D] for the text tower and [V, D] for the image tower."""
        token_1NE = torch.cat([self.text_in(context_LD), self.vision_in(prompt_VD)]).unsqueeze(0)
        coupled_NE = self.layer(token_1NE)[0]
        return self.text_out(coupled_NE[: len(context_LD)]), self.vision_out(coupled_NE[len(context_LD) :])
