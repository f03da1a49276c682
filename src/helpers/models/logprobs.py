"""Log-probabilities of completions, token by token.

Comes after `loading` in the flow of data; the table of rollouts, every loss and the evaluation read
them. Reads and writes no file.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from jaxtyping import Float, Float32, Int, Int64
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from adapter_geometry import language_models
from adapter_geometry.language_models import TokenIds
from helpers.models import loading
from helpers.models.loading import LanguageModel

_LENGTH_GROUPS = 4
# Tokens of a prompt with all its completions; beyond, attention over a row of this length costs
# more than the prompts that it saves.
LONGEST_SHARED = 2048


def token_logprobs(
    model: LanguageModel,
    input_ids: Int[Tensor, "rows tokens"],
    completion_mask: Int[Tensor, "rows tokens"],
) -> Float[Tensor, "rows tokens-1"]:
    """log pi(y_t | x, y_<t) at each completion token, in nats, 0 where `completion_mask[:, 1:]` is
    0: the first token of a row is predicted by nothing.

    Each row is a prompt, a completion, and padding; the mask is 1 on the completion.

    Rows with one short prompt share it: they run as one sequence, prompt first, in which each
    completion sees the prompt and itself. Sequences of similar length run together, and the
    language-model head is applied where completion tokens are predicted only: little is computed
    twice or for padding. With `logits_tokens` on the model (`loading.load_model`), logits exist for
    so many tokens at a time and are computed again in the backward pass, so that the peak of memory
    does not grow with vocabulary times length.
    """
    causal = loading.causal_model(model)
    # (rows,) each: the mask's first 1 is where the prompt ends.
    prompt_lengths, completion_lengths = completion_mask.argmax(1), completion_mask.sum(1)
    sequences = sorted(
        _sequences(causal, input_ids, prompt_lengths, completion_lengths),
        key=lambda rows: int(prompt_lengths[rows[0]] + completion_lengths[rows].sum()),
    )
    row_logp: dict[int, Float[Tensor, " predicted"]] = {}
    # Sorted by length and cut into groups, each group is padded to the longest sequence in it.
    groups = np.array_split(np.arange(len(sequences)), min(_LENGTH_GROUPS, len(sequences)))
    for group in groups:
        packed = [
            _Packed(sequences[number], input_ids, prompt_lengths, completion_lengths)
            for number in group
        ]
        logp = _packed_logprobs(causal, packed)  # (completion tokens of the group,)
        rows = [row for sequence in packed for row in sequence.rows]
        parts = torch.split(logp, completion_lengths[rows].tolist())
        for row, values in zip(rows, parts, strict=True):
            # The token at position t is predicted at t - 1, so a completion begins one column
            # before the prompt's length; zeros before and behind.
            before = int(prompt_lengths[row]) - 1
            behind = input_ids.shape[1] - int(prompt_lengths[row] + completion_lengths[row])
            row_logp[row] = torch.nn.functional.pad(values, (before, behind))
    return torch.stack([row_logp[row] for row in range(len(input_ids))])


def _sequences(
    causal: PreTrainedModel,
    input_ids: Int[Tensor, "rows tokens"],
    prompt_lengths: Int64[Tensor, " rows"],
    completion_lengths: Int64[Tensor, " rows"],
) -> Iterator[list[int]]:
    """Row numbers that run as one sequence each: those with one prompt, where the kernel can mask
    and the sequence stays short."""
    sharing: dict[tuple[int, ...], list[int]] = {}  # prompt -> its rows
    prompts = zip(input_ids.tolist(), prompt_lengths.tolist(), strict=True)
    for row, (ids, length) in enumerate(prompts):
        sharing.setdefault(tuple(ids[:length]), []).append(row)
    can_mask = causal.config._attn_implementation != "flash_attention_2"
    for rows in sharing.values():
        length = int(prompt_lengths[rows[0]] + completion_lengths[rows].sum())
        if can_mask and length <= LONGEST_SHARED:
            yield rows
        else:
            yield from ([row] for row in rows)


class _Packed:
    """Rows with one prompt as one sequence: the prompt, then the completion of each row.

    rows       numbers of the rows
    ids        (tokens,)  the prompt's tokens and those of all completions
    positions  (tokens,)  each completion counts on from the prompt, as it does alone
    owners     (tokens,)  0 = prompt, i = the i-th row's completion
    targets    (completion tokens,)  where completion tokens are, row after row
    sources    (completion tokens,)  where the hidden state is that predicts each of them
    """

    def __init__(
        self,
        rows: list[int],
        input_ids: Int[Tensor, "rows tokens"],
        prompt_lengths: Int64[Tensor, " rows"],
        completion_lengths: Int64[Tensor, " rows"],
    ) -> None:
        self.rows, start, device = rows, int(prompt_lengths[rows[0]]), input_ids.device
        ends = [start + length for length in completion_lengths[rows].tolist()]
        completions = [input_ids[row, start:end] for row, end in zip(rows, ends, strict=True)]
        self.ids = torch.cat([input_ids[rows[0], :start], *completions])
        counted = [torch.arange(start), *(torch.arange(start, end) for end in ends)]
        self.positions = torch.cat(counted).to(device)
        owners = [0] * start
        for number, end in enumerate(ends, start=1):
            owners += [number] * (end - start)
        self.owners = torch.tensor(owners, device=device)
        self.targets = torch.arange(start, len(self.ids), device=device)
        # The first token of each completion is predicted by the prompt's last token, wherever the
        # completion lies; every other one by the token before it.
        is_first = self.positions[self.targets] == start
        self.sources = torch.where(is_first, start - 1, self.targets - 1)

    def padded_positions(self, width: int) -> Int64[Tensor, " width"]:
        """The positions, continued to `width`.

        Positions that begin again at 0 look like packed sequences, for which transformers makes a
        mask; so padding goes on counting.
        """
        padding = torch.arange(width - len(self.ids), device=self.ids.device)
        return torch.cat([self.positions, self.positions[-1] + 1 + padding])


def _packed_logprobs(causal: PreTrainedModel, packed: list[_Packed]) -> Float[Tensor, " predicted"]:
    """log pi of the completion tokens of some sequences, one forward pass for all; sequence after
    sequence, and row after row in each."""
    # (sequences, width), padded on the right.
    ids = pad_sequence([sequence.ids for sequence in packed], batch_first=True)
    positions = torch.stack([sequence.padded_positions(ids.shape[1]) for sequence in packed])
    owners = pad_sequence(
        [sequence.owners for sequence in packed], batch_first=True, padding_value=-1
    )
    visible = None  # plain causal attention, for which there are faster kernels
    if any(len(sequence.rows) > 1 for sequence in packed):
        # (sequences, queries, keys): a token sees the prompt and its own completion, up to itself.
        is_prompt = owners[:, None, :] == 0
        is_own_completion = owners[:, None, :] == owners[:, :, None]
        # (sequences, heads = 1, queries, keys)
        visible = (is_prompt | is_own_completion).tril()[:, None]
    # (sequences, width, hidden)
    hidden = loading.hidden_states(
        causal, input_ids=ids, position_ids=positions, attention_mask=visible, use_cache=False
    )
    # (predicted, hidden): the head, the largest matrix, is applied to these states alone.
    states = torch.cat([hidden[number, sequence.sources] for number, sequence in enumerate(packed)])
    chosen = torch.cat([sequence.ids[sequence.targets] for sequence in packed])  # (predicted,)
    return language_models.chosen_logprobs(causal, states, chosen)


@torch.inference_mode()
def score(
    model: LanguageModel,
    prompts: Sequence[TokenIds],
    completions: Sequence[TokenIds],
    batch_size: int = 64,
) -> list[Float32[np.ndarray, " tokens"]]:
    """log pi, nats, of each completion token under `model`, one array per completion in the order
    given; prompts of similar length, and equal ones, run together.

    Raises ValueError for a row that is longer than the model's context or has tokens that the model
    does not know, naming its index.
    """
    context, vocabulary = model.config.max_position_embeddings, model.config.vocab_size
    for index, row in enumerate(zip(prompts, completions, strict=True)):
        length, largest = sum(map(len, row)), max(max(part, default=0) for part in row)
        if length > context or largest >= vocabulary:
            raise ValueError(
                f"row {index} has {length} tokens, the largest {largest}; "
                f"the model's context is {context} and its vocabulary {vocabulary}: "
                "shorten the row, or score it with the model whose tokenizer wrote it"
            )
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), tuple(prompts[i])))
    scores: dict[int, Float32[np.ndarray, " tokens"]] = {}
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        padded = language_models.pad([prompts[i] for i in rows], [completions[i] for i in rows], 0)
        input_ids, completion_mask = (part.to(model.device) for part in padded)
        logp = token_logprobs(model, input_ids, completion_mask)  # (rows, tokens - 1)
        is_predicted = completion_mask[:, 1:].bool()
        for i, values, mask in zip(rows, logp, is_predicted, strict=True):
            scores[i] = values[mask].cpu().numpy()
    return [scores[i] for i in range(len(prompts))]
