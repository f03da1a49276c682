"""What is asked of a causal language model: log-probabilities of chosen tokens, and padded batches.

Below everything that runs a model, here and in the study: `mode_connectivity` and `representations`
call it, and so do sampling, training and evaluation. Works in memory alone.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64, Integer, Shaped
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# A causal language model of transformers with the parts of Llama and Qwen: `model`, the body with
# its final `norm`, and `lm_head`. Its attribute `logits_tokens`, where it has one, is how many
# tokens may have their logits (tokens, vocabulary) in memory at one time.
CausalModel = Any
TokenIds = Sequence[int] | Integer[np.ndarray, " _"]  # of one text


def chosen_logprobs(
    causal: CausalModel, states: Float[Tensor, "token d"], chosen: Int64[Tensor, " token"]
) -> Float32[Tensor, " token"]:
    """Log-probability of each chosen token given the last hidden state before it, in nats.

    In parts of `logits_tokens` tokens; where there are several and gradients are asked for, each
    part's logits are computed again in the backward pass in place of being kept.
    """

    def of_part(states: Tensor, chosen: Tensor) -> Tensor:
        logp = torch.log_softmax(causal.lm_head(states).float(), -1)  # (part, vocabulary)
        return logp.gather(-1, chosen[:, None]).squeeze(-1)

    parts = in_parts(causal, states, chosen)
    if len(parts) > 1 and states.requires_grad:
        return torch.cat([checkpoint(of_part, *part, use_reentrant=False) for part in parts])
    return torch.cat([of_part(*part) for part in parts])


def in_parts(
    causal: CausalModel, *tensors: Shaped[Tensor, "token ..."]
) -> list[tuple[Tensor, ...]]:
    """Tensors with one row per token, cut together into parts of at most `logits_tokens` tokens."""
    size = getattr(causal, "logits_tokens", None) or max(1, len(tensors[0]))
    return list(zip(*(torch.split(tensor, size) for tensor in tensors), strict=True))


def pad(
    prompts: Sequence[TokenIds], completions: Sequence[TokenIds], pad_id: int
) -> tuple[Int64[Tensor, "row width"], Int64[Tensor, "row width"]]:
    """(input_ids, completion_mask) of token ids, padded on the right to the longest text.

    The mask is 1 on tokens of the completion, 0 on the prompt's and on padding.
    """
    width = max(
        len(prompt) + len(completion)
        for prompt, completion in zip(prompts, completions, strict=True)
    )
    input_ids = torch.full((len(prompts), width), pad_id)
    completion_mask = torch.zeros_like(input_ids)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        end = len(prompt) + len(completion)
        input_ids[row, :end] = torch.tensor([*prompt, *completion])
        completion_mask[row, len(prompt) : end] = 1
    return input_ids, completion_mask
