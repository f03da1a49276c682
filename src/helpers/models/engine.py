"""vLLM in the place of a loaded model, for the profiles whose engine it is.

Beside `sampling`, whose `sample` hands over to it. Never run on the machines this book is tested
on, which have no GPU: the tests put a stand-in for vLLM behind it and see what it is asked.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import vllm
from transformers import AutoConfig, GenerationConfig

from adapter_geometry.language_models import TokenIds
from helpers.models import loading
from helpers.profiles import Profile

# Tokens of the longest prompt; the whole context of a large model would fill the GPU with room
# for it.
_PROMPT = 2048


class Engine:
    """A model of a profile behind vLLM, with an adapter's folder if one is given; it does itself
    what `sampling.sample` asks of a model."""

    def __init__(self, profile: Profile, name: str, adapter: Path | None = None) -> None:
        from vllm.lora.request import LoRARequest

        folder = loading.local_folder(loading.source_of(profile, name))
        self.llm = vllm.LLM(
            model=str(folder),
            dtype=profile.compute.dtype,
            max_model_len=profile.evaluation.max_new_tokens + _PROMPT,
            # The rest is for the loaded model, which afterwards takes a divergence on the same GPU.
            gpu_memory_utilization=0.5,
            enable_lora=adapter is not None,
            max_lora_rank=profile.lora.rank,
        )
        self.adapter = LoRARequest("adapter", 1, str(adapter)) if adapter else None
        # As transformers has it for a model that it loads.
        self.generation_config = (
            GenerationConfig.from_pretrained(folder)
            if (folder / "generation_config.json").exists()
            else GenerationConfig.from_model_config(AutoConfig.from_pretrained(folder))
        )

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
        """Completions of tokenised prompts, as `sampling.sample`; completion i is drawn from a seed
        of its own, (seed, indices[i]). progress: a bar of tqdm."""
        settings = [
            vllm.SamplingParams(
                temperature=temperature,
                max_tokens=max_new_tokens,
                stop_token_ids=sorted(end_ids),
                detokenize=False,
                seed=seed * 2**20 + index,
            )
            for index in indices
        ]
        outputs = self.llm.generate(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            settings,
            lora_request=self.adapter,
            use_tqdm=False,
        )
        if progress is not None:
            progress.update(len(outputs))
        return [list(output.outputs[0].token_ids) for output in outputs]
