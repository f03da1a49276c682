"""TODO docstring."""

import torch
from torch.utils.checkpoint import checkpoint


def chosen_logprobs(causal, states, chosen):
    """log-probability of each chosen token given the last hidden state before it, in parts of `logits_tokens` tokens."""

    def of_part(states, chosen):
        return (
            torch.log_softmax(causal.lm_head(states).float(), -1)
            .gather(-1, chosen[:, None])
            .squeeze(-1)
        )

    parts = in_parts(causal, states, chosen)
    if len(parts) > 1 and states.requires_grad:
        return torch.cat([checkpoint(of_part, *part, use_reentrant=False) for part in parts])
    return torch.cat([of_part(*part) for part in parts])


def in_parts(causal, *tensors):
    """Tensors with a row a token, cut together into parts of as many tokens as may have their logits at one time."""
    size = getattr(causal, "logits_tokens", None) or max(1, len(tensors[0]))
    return list(zip(*(tensor.split(size) for tensor in tensors), strict=True))


def pad(prompts, completions, pad_id):
    """Right-padded (input_ids, completion_mask), each (rows, tokens), from lists of token ids."""
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
