"""Sampling: completions of many prompts by one model, decoded side by side.

Comes after `loading` in the flow of data, before the table of rollouts and the evaluation. Reads
and writes no file.
"""

from collections.abc import Collection, Sequence
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float64, Int, Int64
from torch import Tensor
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.cache_utils import Cache, DynamicLayer

from adapter_geometry import language_models
from adapter_geometry.language_models import TokenIds
from helpers.models import loading
from helpers.models.loading import LanguageModel

# New prompts start when so large a share of the batch is free: reading them one by one would cost a
# forward pass each.
_REFILL_SHARE = 1 / 8


@runtime_checkable
class SamplingEngine(Protocol):
    """A model that is no PyTorch module and samples by itself (`engine.Engine`)."""

    generation_config: GenerationConfig

    def sample(
        self,
        prompts: Sequence[TokenIds],
        max_new_tokens: int,
        end_ids: Collection[int],
        temperature: float,
        seed: int,
        indices: Sequence[int],
        progress: Any = None,
    ) -> list[list[int]]:
        """Completions of tokenised prompts, as the function `sample`."""


def end_ids_of(
    model: LanguageModel | SamplingEngine, tokenizer: PreTrainedTokenizerBase
) -> frozenset[int]:
    """The end tokens of a model, each of which ends a completion: those that its generation
    settings name and the tokenizer's.

    The settings of a chat model may name several, as Qwen3's two and Llama 3's three; those of a
    base model may name another one than the tokenizer's, which training puts behind texts.
    """
    named: Any = model.generation_config.eos_token_id
    return frozenset(
        {*(named if isinstance(named, list) else [named]), tokenizer.eos_token_id} - {None}
    )


def is_truncated(completion: TokenIds, end_ids: Collection[int]) -> bool:
    """Whether a completion was cut, at a limit, before an end token."""
    return len(completion) == 0 or completion[-1] not in end_ids


def text_of(
    tokenizer: PreTrainedTokenizerBase, completion: TokenIds, end_ids: Collection[int]
) -> str:
    """The text of a completion without its end token, which need not be a special token of the
    tokenizer, and without special tokens."""
    ids = completion if is_truncated(completion, end_ids) else completion[:-1]
    return cast(str, tokenizer.decode(list(ids), skip_special_tokens=True))


@torch.inference_mode()
def sample(
    model: LanguageModel | SamplingEngine,
    prompts: Sequence[TokenIds],
    *,
    max_new_tokens: int,
    end_ids: Collection[int],
    batch_size: int,
    temperature: float = 0.0,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    progress: Any = None,
) -> list[list[int]]:
    """Completions of tokenised prompts: for each the ids of its tokens, the end token included
    where one was reached.

    max_new_tokens: the end token included. end_ids: the model's, of `end_ids_of`. batch_size: how
    many decode side by side. progress: a bar of tqdm, which counts finished completions.
    temperature 0 is greedy. Otherwise completion i is drawn by inverse transform from uniform
    numbers that depend on (seed, indices[i]) alone, so it does not depend on which others are
    sampled in the same batch, up to rounding; indices: 0, 1, 2, ... by default.
    Finished sequences leave the batch and waiting prompts follow; longest prompts start first, and
    equal ones that start together are read once.
    Raises ValueError for a prompt that leaves no room in the model's context, naming its index.
    """
    indices = range(len(prompts)) if indices is None else indices
    if not isinstance(model, torch.nn.Module):
        return model.sample(prompts, max_new_tokens, end_ids, temperature, seed, indices, progress)
    context = model.config.max_position_embeddings
    for index, prompt in zip(indices, prompts, strict=True):
        if len(prompt) >= context:
            raise ValueError(
                f"prompt {index} has {len(prompt)} tokens and the model's context is {context}: "
                "shorten it or choose another model"
            )
    with torch.device(model.device):
        batch = _Batch(
            model, prompts, list(indices), max_new_tokens, end_ids, batch_size, temperature, seed
        )
        return batch.run(progress)


class _Batch:
    """The prompts of one call of `sample`, and the rows that decode side by side at the moment.

    waiting      numbers of the prompts that have not started, the longest last
    completions  the tokens of each prompt's completion so far
    uniforms     {prompt: the uniform numbers from which its tokens are drawn}, while it decodes

    One entry per row, which is a sequence in the batch; the cache holds its keys and values:
    owners       (rows,)  the number of the prompt that it answers
    lengths      (rows,)  how many of its tokens are in the cache
    newest       (rows,)  its newest token, chosen and not read yet, so not in the cache
    """

    def __init__(
        self,
        model: LanguageModel,
        prompts: Sequence[TokenIds],
        indices: list[int],
        max_new_tokens: int,
        end_ids: Collection[int],
        batch_size: int,
        temperature: float,
        seed: int,
    ) -> None:
        self.model, self.prompts, self.indices = model, prompts, indices
        self.max_new_tokens, self.end_ids = max_new_tokens, end_ids
        self.temperature, self.seed = temperature, seed
        self.context: int = model.config.max_position_embeddings
        self.size = min(batch_size, len(prompts))
        longest = min(self.context, max(map(len, prompts), default=0) + max_new_tokens)
        self.cache = _Slots(model.config, self.size, longest, model.dtype)
        self.waiting = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        self.completions: list[list[int]] = [[] for _ in prompts]
        self.uniforms: dict[int, Float64[np.ndarray, " tokens"]] = {}
        self.owners = np.empty(0, dtype=int)
        self.lengths = torch.empty(0, dtype=torch.long)
        self.newest = torch.empty(0, dtype=torch.long)

    def run(self, progress: Any) -> list[list[int]]:
        """Decode until every prompt has its completion; returns them in the prompts' order."""
        while self.waiting or len(self.owners):
            free = self.size - len(self.owners)
            if self.waiting and (free >= self.size * _REFILL_SHARE or not len(self.owners)):
                first = len(self.owners)  # only rows that start now choose a token
                self._start_prompts(free)
            else:
                first = 0
                self._continue_rows()
            self._finish_rows(first, progress)
        return self.completions

    def _start_prompts(self, free: int) -> None:
        """Read waiting prompts into the free rows of the batch, and choose the first token of
        each."""
        numbers = [self.waiting.pop() for _ in range(min(free, len(self.waiting)))]
        if self.temperature:
            for number in numbers:
                generator = np.random.default_rng([self.seed, self.indices[number]])
                self.uniforms[number] = generator.random(self.max_new_tokens)
        # Equal prompts are read once: K completions of each prompt are the rule.
        texts = [tuple(self.prompts[number]) for number in numbers]
        distinct = {text: position for position, text in enumerate(dict.fromkeys(texts))}
        # (distinct, tokens), padded on the right, where causal attention does not look, with any
        # token.
        input_ids, _ = language_models.pad(list(distinct), [[]] * len(distinct), 0)
        first, count = len(self.owners), len(distinct)
        rows = torch.arange(first, first + count)
        positions = torch.arange(input_ids.shape[1]).expand(count, -1)
        self.cache.write_at(rows, positions, None)
        # (distinct, tokens, hidden)
        hidden = loading.hidden_states(
            self.model, input_ids=input_ids, past_key_values=self.cache, use_cache=True
        )
        # (new rows,): which of the distinct prompts each new row answers.
        shared = torch.tensor([distinct[text] for text in texts])
        if count < len(numbers):
            # Each new row gets a copy of its prompt's keys and values.
            self.cache.copy_rows(first + shared, first + torch.arange(len(numbers)))
        lengths = torch.tensor([len(text) for text in texts])
        # The last token of each prompt, not of its padding, predicts the first of the completion.
        logits = self._logits(hidden[shared, lengths - 1])
        self.owners = np.append(self.owners, numbers)
        self.lengths = torch.cat([self.lengths, lengths])
        self.newest = torch.cat([self.newest, self._choose(logits, numbers)])

    def _continue_rows(self) -> None:
        """Read the newest token of every row, and choose the next one."""
        width = int(self.lengths.max()) + 1  # of the cache that any row has filled after this step
        # The newest token of a row comes right after those in the cache: (rows, 1).
        positions = self.lengths[:, None]
        self.cache.write_at(torch.arange(len(self.owners)), positions, width)
        # (rows, heads = 1, queries = 1, width): a row sees its own tokens, the newest included, and
        # not what longer rows or former owners have left behind them.
        visible = (torch.arange(width) <= positions)[:, None, None]
        # (rows, 1, hidden)
        hidden = loading.hidden_states(
            self.model,
            input_ids=self.newest[:, None],
            attention_mask=visible,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
        )
        self.lengths = self.lengths + 1
        self.newest = self._choose(self._logits(hidden[:, -1]), self.owners)

    def _logits(self, hidden: Float[Tensor, "rows hidden"]) -> Float[Tensor, "rows vocabulary"]:
        return cast(Tensor, self.model.lm_head(hidden))

    def _choose(
        self,
        logits: Float[Tensor, "rows vocabulary"],
        owners: list[int] | Int[np.ndarray, " rows"],
    ) -> Int64[Tensor, " rows"]:
        """The next token of each row: the likeliest, or one drawn from its owner's numbers."""
        if self.temperature == 0:
            return logits.argmax(-1)
        # Inverse transform: the first token whose cumulative probability reaches a uniform number.
        # In float64, since the sum of a large vocabulary's float32 probabilities is too rough.
        cumulative = torch.softmax(logits.double() / self.temperature, -1).cumsum(-1)
        uniforms = [self.uniforms[owner][len(self.completions[owner])] for owner in owners]
        # (rows, 1), scaled to the last cumulative sum, which rounding leaves near 1.
        targets = torch.tensor(uniforms, dtype=torch.double)[:, None] * cumulative[:, -1:]
        chosen = torch.searchsorted(cumulative, targets).squeeze(-1)
        return chosen.clamp(max=logits.shape[-1] - 1)

    def _finish_rows(self, first: int, progress: Any) -> None:
        """Write down the newest tokens of the rows from `first` on, and take finished rows out of
        the batch."""
        is_alive = np.ones(len(self.owners), dtype=bool)
        for row, token in enumerate(self.newest[first:].tolist(), start=first):
            owner = int(self.owners[row])
            self.completions[owner].append(token)
            if self._is_finished(owner, token):
                is_alive[row] = False
                self.uniforms.pop(owner, None)
                if progress is not None:
                    progress.update()
        if not is_alive.all():
            self._close_gaps(is_alive)

    def _is_finished(self, owner: int, token: int) -> bool:
        """Whether a completion ends with this token: by itself, at its limit, or at the model's."""
        length = len(self.completions[owner])
        return (
            token in self.end_ids
            or length >= self.max_new_tokens
            or len(self.prompts[owner]) + length >= self.context
        )

    def _close_gaps(self, is_alive: np.ndarray) -> None:
        """Move the last living rows into the gaps that finished ones leave, so that the rows of the
        batch are the first ones of the cache."""
        count = int(is_alive.sum())
        gaps = np.flatnonzero(~is_alive[:count])
        movers = count + np.flatnonzero(is_alive[count:])  # as many as there are gaps
        if len(gaps):
            self.cache.copy_rows(torch.from_numpy(movers), torch.from_numpy(gaps))
        order = np.arange(count)
        order[gaps] = movers
        self.owners = self.owners[order]
        self.lengths, self.newest = self.lengths[order], self.newest[order]


class _Slots(Cache):
    """Keys and values of a fixed number of sequences, written in place: nothing is copied from step
    to step, as concatenating caches do.

    stored: (layers, keys and values, slots, heads, context, head size). A *slot* is the space for
    one sequence; the row of the batch with the same number lives in it.
    """

    def __init__(
        self, config: PreTrainedConfig, slots: int, context: int, dtype: torch.dtype
    ) -> None:
        super().__init__(layer_class_to_replicate=DynamicLayer)
        heads = config.num_key_value_heads
        size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        layers = config.num_hidden_layers
        self.stored = torch.zeros(layers, 2, slots, heads, context, size, dtype=dtype)

    def write_at(
        self,
        rows: Int64[Tensor, " rows"],
        positions: Int64[Tensor, "rows tokens"],
        width: int | None,
    ) -> None:
        """Say where the next forward pass writes, and how far it reads: `width` tokens of each row,
        or, while prompts are read, nothing but what it writes itself (None)."""
        self.rows, self.positions, self.width = rows, positions, width

    def update(
        self,
        key_states: Float[Tensor, "rows heads tokens size"],
        value_states: Float[Tensor, "rows heads tokens size"],
        layer_idx: int,
        *args: Any,
        **kwargs: Any,
    ) -> tuple[Float[Tensor, "rows heads seen size"], Float[Tensor, "rows heads seen size"]]:
        """Write a layer's new keys and values, and return those that the new tokens attend to."""
        keys, values = self.stored[layer_idx]  # (slots, heads, context, size)
        for stored, new in ((keys, key_states), (values, value_states)):
            # Indexing by (rows, 1) and (rows, tokens) around the heads puts these first:
            # (rows, tokens, heads, size).
            stored[self.rows[:, None], :, self.positions] = new.transpose(1, 2)
        if self.width is None:
            return key_states, value_states
        count = len(self.rows)  # the first slots, without a gap (`_Batch._close_gaps`)
        return keys[:count, :, : self.width], values[:count, :, : self.width]

    def copy_rows(self, source: Int64[Tensor, " rows"], target: Int64[Tensor, " rows"]) -> None:
        """Copy whole rows, keys and values of all layers."""
        for layer in self.stored:  # one at a time: what is gathered exists twice
            layer[:, target] = layer[:, source]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        """0, so that transformers takes positions and mask as they are given."""
        return 0
