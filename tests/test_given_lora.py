"""LoRA weights trained anew in place are another run."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from raydapt.methods.configuration import load_config
from raydapt.models.diffusion_lora import WEIGHTS_FILE
from raydapt.run.plan import make_plan


def test_weights_of_the_same_name_with_another_content_are_another_run(tmp_path: Path) -> None:
    def fingerprint(seed: int) -> str:
        torch.manual_seed(seed)
        name = "unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_q"
        down, up = torch.randn(4, 16), torch.randn(16, 4)
        weights = {f"{name}.lora_A.weight": down, f"{name}.lora_B.weight": up}
        save_file(weights, str(tmp_path / WEIGHTS_FILE))
        places = [f"runs={tmp_path}/runs", f"store={tmp_path}/store", f"synthesis.lora={tmp_path}", "lora.rank=4"]
        return make_plan(load_config(None, [*places, "method=air"])).fingerprint

    assert fingerprint(0) == fingerprint(0) != fingerprint(1)
