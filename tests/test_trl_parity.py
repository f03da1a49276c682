"""Our losses on our forward pass against TRL's trainers on one batch: the same loss and the same gradients of the adapter."""

import pytest
import torch
from conftest import fill_adapter
from datasets import Dataset
from peft import LoraConfig
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

from helpers import models, objectives

logging.disable_progress_bar()
PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13], [9, 10]]
COMPLETIONS = [[20, 21, 22, 2], [23, 2], [24, 25, 26, 27, 28, 2], [29, 30, 31, 2]]


@pytest.fixture
def common(tmp_path):
    return {"output_dir": str(tmp_path), "bf16": False, "use_cpu": True, "report_to": [], "gradient_checkpointing": False, "disable_tqdm": True,
            "per_device_train_batch_size": 2}


@pytest.fixture
def pieces(tiny_model, smoke):
    """Base model, adapter and tokenizer for a trainer; the base's vocabulary is the tokenizer's."""
    tokenizer = models.load_tokenizer(smoke)
    lora = LoraConfig(r=2, lora_alpha=4, lora_dropout=0.0, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], task_type="CAUSAL_LM")
    return {"model": tiny_model(vocabulary=len(tokenizer)), "processing_class": tokenizer, "peft_config": lora}


def gradients(model, loss):
    """{name: gradient} of the adapter's weights."""
    model.zero_grad()
    loss.backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters() if "lora_" in name and weight.grad is not None}


def ours(model, name, reference=None, **options):
    """Our loss of the batch, sum over units divided by their number."""
    input_ids, completion_mask = models.pad(PROMPTS, COMPLETIONS, 0)
    mask = completion_mask[:, 1:].float()
    none = torch.zeros(len(PROMPTS))
    rows = objectives.Rows(mask, none, none, none, 0 * mask, 0 * mask if reference is None else reference)
    loss, weight = objectives.objective(name).loss(models.token_logprobs(model, input_ids, completion_mask), rows, **options)
    return loss / weight


def assert_same(model, our_loss, their_loss):
    torch.testing.assert_close(our_loss, their_loss, rtol=1e-5, atol=1e-6, msg=f"loss: ours {our_loss.item()}, TRL's {their_loss.item()}")
    mine, theirs = gradients(model, our_loss), gradients(model, their_loss)
    assert len(theirs) == 2 * 2 * 4, "A and B of four projections in two layers take part"
    assert mine.keys() == theirs.keys(), "the same weights receive gradients"
    for name, gradient in theirs.items():
        assert gradient.norm() > 1e-6, f"{name} must have a gradient worth comparing"
        torch.testing.assert_close(mine[name], gradient, rtol=1e-4, atol=1e-6 * gradient.norm().item(), msg=f"gradient of {name} differs from TRL's")


@pytest.mark.parametrize(("objective", "loss_type"), [("sft", "nll"), ("dft", "dft")])
def test_sft_and_dft_are_those_of_trl(objective, loss_type, pieces, common):
    rows = [{"input_ids": prompt + completion, "completion_mask": [0] * len(prompt) + [1] * len(completion)}
            for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)]
    arguments = SFTConfig(**common, loss_type=loss_type, completion_only_loss=True, max_length=None)
    trainer = SFTTrainer(**pieces, args=arguments, train_dataset=Dataset.from_list(rows))
    model = fill_adapter(trainer.model)
    batch = trainer.data_collator(list(trainer.train_dataset))
    assert (batch["labels"] != -100).sum() == sum(map(len, COMPLETIONS)), "TRL trains on completion tokens only"
    assert_same(model, ours(model, objective), trainer.compute_loss(model, dict(batch)))


def test_dpo_is_that_of_trl(pieces, common):
    words = [{"prompt": "Tom has", "chosen": " 3 apples.", "rejected": " 4 apples."}]
    trainer = DPOTrainer(**pieces, args=DPOConfig(**common, beta=0.1, loss_type="sigmoid", max_length=None), train_dataset=Dataset.from_list(words))
    model = fill_adapter(trainer.model)
    pairs = [{"prompt_ids": PROMPTS[i], "chosen_ids": COMPLETIONS[i], "rejected_ids": COMPLETIONS[j]} for i, j in ((1, 3),)]
    batch = trainer.data_collator([*pairs, {"prompt_ids": PROMPTS[0], "chosen_ids": COMPLETIONS[0], "rejected_ids": COMPLETIONS[2]}])
    model.train()
    their_loss = trainer.compute_loss(model, dict(batch))

    prompts = [PROMPTS[i] for i in (1, 1, 0, 0)]
    completions = [COMPLETIONS[i] for i in (1, 3, 0, 2)]
    input_ids, completion_mask = models.pad(prompts, completions, 0)
    with model.disable_adapter(), torch.no_grad():
        reference = models.token_logprobs(model, input_ids, completion_mask)
    mask, none = completion_mask[:, 1:].float(), torch.zeros(4)
    loss, weight = objectives.dpo(models.token_logprobs(model, input_ids, completion_mask), objectives.Rows(mask, none, none, none, 0 * mask, reference))
    assert abs((loss / weight).item() - 0.6931) > 1e-3, "the adapter must have left the base, or the comparison says nothing"
    assert_same(model, loss / weight, their_loss)
