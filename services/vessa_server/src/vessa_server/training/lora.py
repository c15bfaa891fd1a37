"""LoRA in the language model (Hu et al., 2021), through ``peft``."""

from __future__ import annotations

import copy

from peft import LoraConfig, PeftModel, get_peft_model

from vessa_server.model.vessa import Vessa
from vessa_server.training.config import FineTuningConfig

# Attention and feed-forward projections of Qwen3-VL's language model, not of its vision tower.
TARGETS = r".*language_model.*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def inject(model: Vessa, config: FineTuningConfig) -> PeftModel:
    """Put adapters into the language model, in place, and freeze the VLM's own weights.

    Returns:
        The handle that :func:`merged` needs.
    """
    lora = LoraConfig(
        r=config.lora_rank, lora_alpha=config.lora_alpha, target_modules=TARGETS, bias="none"
    )
    handle = get_peft_model(model.reasoner.vlm, lora)
    assert isinstance(handle, PeftModel)
    return handle


def merged(model: Vessa, handle: PeftModel) -> Vessa:
    """A copy of ``model`` whose adapters are summed into the weights: a plain model again."""
    # One deep copy of both, so that the handle's copy holds the copied model's VLM.
    plain, own_handle = copy.deepcopy((model, handle))
    plain.reasoner.vlm = own_handle.merge_and_unload()
    return plain
