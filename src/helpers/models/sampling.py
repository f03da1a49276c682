"""TODO docstring."""

import numpy as np
import torch
from transformers.cache_utils import Cache, DynamicLayer

from adapter_geometry import language_models
from helpers.models import loading

_REFILL_SHARE = 1 / 8


# --- sampling ------------------------------------------------------------------------------------------------------


class _Slots(Cache):
    """Keys and values of a fixed number of sequences, written in place: nothing is copied from step to step.

    `rows` and `positions` name where the next update goes, `width` how far any row reaches; None while prompts are read.
    """

    def __init__(self, config, slots, context, dtype):
        super().__init__(layer_class_to_replicate=DynamicLayer)
        heads, size = (
            config.num_key_value_heads,
            getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        )
        self.stored = torch.zeros(
            config.num_hidden_layers, 2, slots, heads, context, size, dtype=dtype
        )
        self.rows = self.positions = self.width = None

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        keys, values = self.stored[layer_idx]
        for kept, new in ((keys, key_states), (values, value_states)):
            kept[self.rows[:, None], :, self.positions] = new.transpose(1, 2)
        if self.width is None:
            return key_states, value_states
        count = len(self.rows)
        return keys[:count, :, : self.width], values[:count, :, : self.width]

    def move(self, source, target):
        """Copy whole rows: survivors close the gaps that finished sequences leave."""
        for layer in self.stored:  # one at a time: what is gathered exists twice
            layer[:, target] = layer[:, source]

    def get_seq_length(self, layer_idx=0):
        return 0


@torch.inference_mode()
def sample(
    model,
    prompts,
    *,
    max_new_tokens,
    end_id,
    batch_size,
    temperature=0.0,
    seed=0,
    indices=None,
    progress=None,
):
    """Completions of tokenised prompts, a list of lists of token ids, the end token included where it was reached.

    temperature 0 is greedy. Otherwise completion i is drawn by inverse transform from uniform numbers that depend on
    (seed, indices[i]) alone, so it does not depend on which others are sampled beside it, up to rounding.
    Finished sequences leave the batch and waiting prompts take their places; longest prompts start first, and equal ones that start together are read once.
    A model that is no PyTorch module (`engine.Engine`) samples by itself. Raises ValueError for a prompt that leaves no room in the model's context,
    naming its index.
    """
    indices = range(len(prompts)) if indices is None else indices
    if not isinstance(model, torch.nn.Module):
        return model.sample(prompts, max_new_tokens, end_id, temperature, seed, indices, progress)
    context = model.config.max_position_embeddings
    for index, prompt in zip(indices, prompts, strict=True):
        if len(prompt) >= context:
            raise ValueError(
                f"prompt {index} has {len(prompt)} tokens and the model's context is {context}: shorten it or choose another model"
            )
    with torch.device(model.device):
        return _sample(
            model,
            prompts,
            list(indices),
            max_new_tokens,
            end_id,
            batch_size,
            temperature,
            seed,
            progress,
        )


def _sample(
    model, prompts, indices, max_new_tokens, end_id, batch_size, temperature, seed, progress
):
    context = model.config.max_position_embeddings
    longest = min(context, max(map(len, prompts), default=0) + max_new_tokens)
    waiting = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    slots = min(batch_size, len(prompts))
    cache = _Slots(model.config, slots, longest, model.dtype)
    owner = np.empty(0, dtype=int)
    lengths = torch.empty(0, dtype=torch.long)
    last = torch.empty(0, dtype=torch.long)
    written = [[] for _ in prompts]
    draws = {}

    def choose(logits, owners):
        if temperature == 0:
            return logits.argmax(-1)
        cumulative = torch.softmax(logits.double() / temperature, -1).cumsum(-1)
        numbers = torch.tensor([draws[i][len(written[i])] for i in owners], dtype=torch.double)
        return (
            torch.searchsorted(cumulative, numbers[:, None] * cumulative[:, -1:])
            .squeeze(-1)
            .clamp(max=logits.shape[-1] - 1)
        )

    def is_over(i, token):
        return (
            token == end_id
            or len(written[i]) >= max_new_tokens
            or len(prompts[i]) + len(written[i]) >= context
        )

    while waiting or len(owner):
        free = slots - len(owner)
        if waiting and (free >= slots * _REFILL_SHARE or not len(owner)):
            new = [waiting.pop() for _ in range(min(free, len(waiting)))]
            if temperature:
                draws.update(
                    {
                        i: np.random.default_rng([seed, indices[i]]).random(max_new_tokens)
                        for i in new
                    }
                )
            distinct = {
                prompt: number
                for number, prompt in enumerate(dict.fromkeys(tuple(prompts[i]) for i in new))
            }
            ids, _ = language_models.pad(list(distinct), [[]] * len(distinct), end_id)
            ends = torch.tensor([len(prompts[i]) for i in new])
            cache.rows = torch.arange(len(owner), len(owner) + len(distinct))
            cache.positions, cache.width = (
                torch.arange(ids.shape[1]).expand(len(distinct), -1),
                None,
            )
            hidden = (
                loading.causal_model(model)
                .model(input_ids=ids, past_key_values=cache, use_cache=True)
                .last_hidden_state
            )
            sharing = torch.tensor([distinct[tuple(prompts[i])] for i in new])
            if len(distinct) < len(new):
                cache.move(len(owner) + sharing, len(owner) + torch.arange(len(new)))
            logits = model.lm_head(hidden[sharing, ends - 1])
            owner, lengths, last = (
                np.append(owner, new),
                torch.cat([lengths, ends]),
                torch.cat([last, choose(logits, new)]),
            )
        else:
            cache.rows, cache.positions, cache.width = (
                torch.arange(len(owner)),
                lengths[:, None],
                int(lengths.max()) + 1,
            )
            visible = (torch.arange(cache.width) <= lengths[:, None])[:, None, None]
            hidden = (
                loading.causal_model(model)
                .model(
                    input_ids=last[:, None],
                    attention_mask=visible,
                    position_ids=lengths[:, None],
                    past_key_values=cache,
                    use_cache=True,
                )
                .last_hidden_state
            )
            lengths = lengths + 1
            last = choose(model.lm_head(hidden[:, -1]), owner)
            new = owner
        fresh = len(owner) - len(new)
        alive = np.ones(len(owner), dtype=bool)
        for place, token in enumerate(last[fresh:].tolist(), start=fresh):
            written[owner[place]].append(token)
            if is_over(owner[place], token):
                alive[place] = False
                draws.pop(owner[place], None)
                if progress is not None:
                    progress.update()
        if not alive.all():
            owner, lengths, last = _close_gaps(cache, alive, owner, lengths, last)
    return written


def _close_gaps(cache, alive, owner, lengths, last):
    """Move the last living rows into the places of finished ones."""
    count = int(alive.sum())
    gaps, movers = np.flatnonzero(~alive[:count]), count + np.flatnonzero(alive[count:])
    if len(gaps):
        cache.move(torch.from_numpy(movers), torch.from_numpy(gaps))
    order = np.arange(count)
    order[gaps] = movers
    return owner[order], lengths[order], last[order]
