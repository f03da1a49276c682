"""TODO docstring."""

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from adapter_geometry import language_models
from helpers.models import loading

_LENGTH_GROUPS = 4
LONGEST_SHARED = 2048  # tokens of a prompt with all its completions; beyond, attention over a row of this length costs more than the prompts that it saves


def token_logprobs(model, input_ids, completion_mask):
    """log pi(y_t | x, y_<t) at each completion token, shape (rows, tokens - 1), 0 where `completion_mask[:, 1:]` is 0.

    Rows with one short prompt share it: they run as one sequence, prompt first, in which each completion sees the prompt and itself. Sequences of
    similar length run together, and the language-model head is applied where completion tokens are predicted only: little is computed twice or for
    padding. With `logits_tokens` on the model (`load_model`), logits exist for so many tokens at a time and are computed again in the backward
    pass, so that the peak of memory does not grow with vocabulary times length.
    """
    causal = loading.causal_model(model)
    prompt, count = completion_mask.argmax(1), completion_mask.sum(1)
    sequences = sorted(
        _sequences(causal, input_ids, prompt, count),
        key=lambda rows: int(prompt[rows[0]] + count[rows].sum()),
    )
    filled = [None] * len(input_ids)
    for part in np.array_split(np.arange(len(sequences)), min(_LENGTH_GROUPS, len(sequences))):
        packed = [_Packed(sequences[number], input_ids, prompt, count) for number in part]
        ids = pad_sequence([one.ids for one in packed], batch_first=True)
        # Positions that begin again at 0 look like packed sequences, for which transformers makes a mask; so padding goes on counting.
        positions = torch.stack(
            [
                torch.cat(
                    [
                        one.positions,
                        one.positions[-1]
                        + 1
                        + torch.arange(ids.shape[1] - len(one.ids), device=ids.device),
                    ]
                )
                for one in packed
            ]
        )
        owners = pad_sequence([one.owners for one in packed], batch_first=True, padding_value=-1)
        visible = None  # plain causal attention, for which there are faster kernels
        if any(len(sequence.rows) > 1 for sequence in packed):
            visible = (
                (owners[:, None, :] == 0) | (owners[:, None, :] == owners[:, :, None])
            ).tril()[:, None]
        hidden = causal.model(
            input_ids=ids, position_ids=positions, attention_mask=visible, use_cache=False
        ).last_hidden_state
        before = torch.cat(
            [hidden[number, sequence.before] for number, sequence in enumerate(packed)]
        )
        chosen = torch.cat([sequence.ids[sequence.after] for sequence in packed])
        logp = language_models.chosen_logprobs(causal, before, chosen)
        rows = [row for sequence in packed for row in sequence.rows]
        for row, values in zip(rows, logp.split(count[rows].tolist()), strict=True):
            filled[row] = torch.nn.functional.pad(
                values, (int(prompt[row]) - 1, input_ids.shape[1] - int(prompt[row] + count[row]))
            )
    return torch.stack(filled)


def _sequences(causal, input_ids, prompt, count):
    """Row numbers that run as one sequence each: those with one prompt, where the kernel can mask and the sequence stays short."""
    sharing = {}
    for row, (ids, length) in enumerate(zip(input_ids.tolist(), prompt.tolist(), strict=True)):
        sharing.setdefault(tuple(ids[:length]), []).append(row)
    can_mask = causal.config._attn_implementation != "flash_attention_2"
    for rows in sharing.values():
        if can_mask and int(prompt[rows[0]] + count[rows].sum()) <= LONGEST_SHARED:
            yield rows
        else:
            yield from ([row] for row in rows)


class _Packed:
    """Rows with one prompt as one sequence: `ids`, `positions`, `owners` (0 = prompt, i = the i-th row's completion).

    `after` are the places of completion tokens, row after row, and `before` those from which each is predicted.
    """

    def __init__(self, rows, input_ids, prompt, count):
        self.rows, length = rows, int(prompt[rows[0]])
        sizes = count[rows].tolist()
        self.ids = torch.cat(
            [
                input_ids[rows[0], :length],
                *(
                    input_ids[row, length : length + size]
                    for row, size in zip(rows, sizes, strict=True)
                ),
            ]
        )
        self.positions = torch.cat(
            [torch.arange(length), *(torch.arange(length, length + size) for size in sizes)]
        ).to(input_ids.device)
        self.owners = torch.tensor(
            [0] * length
            + [number for number, size in enumerate(sizes, start=1) for _ in range(size)],
            device=input_ids.device,
        )
        self.after = torch.arange(length, len(self.ids), device=input_ids.device)
        self.before = torch.where(self.positions[self.after] == length, length - 1, self.after - 1)


@torch.inference_mode()
def score(model, prompts, completions, batch_size=64):
    """log pi of each completion token under `model`, a list of float32 arrays in the order given; prompts of similar length, and equal ones, together.

    Raises ValueError for a row that is longer than the model's context or has tokens that the model does not know, naming its index.
    """
    context, vocabulary = model.config.max_position_embeddings, model.config.vocab_size
    for index, row in enumerate(zip(prompts, completions, strict=True)):
        length, largest = sum(map(len, row)), max(max(part, default=0) for part in row)
        if length > context or largest >= vocabulary:
            raise ValueError(
                f"row {index} has {length} tokens, the largest {largest}; the model's context is {context} and its vocabulary {vocabulary}: "
                "shorten the row, or score it with the model whose tokenizer wrote it"
            )
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), tuple(prompts[i])))
    found = [None] * len(prompts)
    for first in range(0, len(order), batch_size):
        rows = order[first : first + batch_size]
        input_ids, completion_mask = (
            part.to(model.device)
            for part in language_models.pad(
                [prompts[i] for i in rows], [completions[i] for i in rows], 0
            )
        )
        logp = token_logprobs(model, input_ids, completion_mask)
        for i, values, mask in zip(rows, logp, completion_mask[:, 1:].bool(), strict=True):
            found[i] = values[mask].cpu().numpy()
    return found
