"""vLLM in the place of a loaded model, for the profiles whose engine it is.

Stands beside `rollouts`, whose `sample` hands over to it. Never run on the machines this book is tested on, which have no GPU: the tests put a
stand-in for vLLM behind it and see what it is asked.
"""

import vllm

from helpers.models import loading

_PROMPT = 2048  # tokens of the longest prompt; the whole context of a large model would fill the GPU with room for it


class Engine:
    """A model of a profile behind vLLM, with an adapter's folder if one is given; what `rollouts.sample` asks of a model it does itself."""

    def __init__(self, profile, name, adapter=None):
        from vllm.lora.request import LoRARequest

        self.llm = vllm.LLM(
            model=str(loading.folder(loading.source(profile, name))),
            dtype=profile.compute.dtype,
            max_model_len=profile.evaluation.max_new_tokens + _PROMPT,
            gpu_memory_utilization=0.5,  # a divergence is then taken beside it, by the loaded model
            enable_lora=adapter is not None,
            max_lora_rank=profile.lora.rank,
        )
        self.adapter = LoRARequest("adapter", 1, str(adapter)) if adapter else None

    def sample(self, prompts, max_new_tokens, end_id, temperature, seed, indices, progress=None):
        """Completions of tokenised prompts, as `rollouts.sample`; completion i is drawn from a seed of its own, (seed, indices[i])."""
        settings = [
            vllm.SamplingParams(
                temperature=temperature,
                max_tokens=max_new_tokens,
                stop_token_ids=[end_id],
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
