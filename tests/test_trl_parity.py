"""Our losses on our forward pass against TRL's trainers on one batch: the same loss and the same
gradients of the adapter."""

from types import SimpleNamespace

import pytest
import torch
from conftest import fill_adapter
from datasets import Dataset
from peft import LoraConfig
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, SFTConfig, SFTTrainer
from trl.experimental.cpo import CPOTrainer

from adapter_geometry import language_models
from helpers.models import loading, logprobs
from helpers.training import objectives

logging.disable_progress_bar()
PROMPTS = [[5, 6, 7, 8], [9, 10], [11, 12, 13], [9, 10]]
COMPLETIONS = [[20, 21, 22, 2], [23, 2], [24, 25, 26, 27, 28, 2], [29, 30, 31, 2]]


@pytest.fixture
def common(tmp_path):
    return {
        "output_dir": str(tmp_path),
        "bf16": False,
        "use_cpu": True,
        "report_to": [],
        "gradient_checkpointing": False,
        "disable_tqdm": True,
        "per_device_train_batch_size": 2,
    }


@pytest.fixture
def pieces(tiny_model, smoke):
    """Base model, adapter and tokenizer for a trainer; the base's vocabulary is the tokenizer's."""
    tokenizer = loading.load_tokenizer(smoke)
    lora = LoraConfig(
        r=2,
        lora_alpha=4,
        lora_dropout=0.0,
        target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        task_type="CAUSAL_LM",
    )
    return {
        "model": tiny_model(vocabulary=len(tokenizer)),
        "processing_class": tokenizer,
        "peft_config": lora,
    }


def gradients(model, loss):
    """{name: gradient} of the adapter's weights."""
    model.zero_grad()
    loss.backward()
    return {
        name: weight.grad.clone()
        for name, weight in model.named_parameters()
        if "lora_" in name and weight.grad is not None
    }


def ours(model, name, reference=None, **options):
    """Our loss of the batch, sum over units divided by their number."""
    input_ids, completion_mask = language_models.pad(PROMPTS, COMPLETIONS, 0)
    mask = completion_mask[:, 1:].float()
    none = torch.zeros(len(PROMPTS))
    rows = objectives.Rows(
        mask, none, none, none, 0 * mask, 0 * mask if reference is None else reference
    )
    loss, weight = objectives.objective(name).loss(
        logprobs.token_logprobs(model, input_ids, completion_mask), rows, **options
    )
    return loss / weight


def assert_same(model, our_loss, their_loss):
    torch.testing.assert_close(
        our_loss,
        their_loss,
        rtol=1e-5,
        atol=1e-6,
        msg=f"loss: ours {our_loss.item()}, TRL's {their_loss.item()}",
    )
    mine, theirs = gradients(model, our_loss), gradients(model, their_loss)
    assert len(theirs) == 2 * 2 * 4, "A and B of four projections in two layers take part"
    assert mine.keys() == theirs.keys(), "the same weights receive gradients"
    for name, gradient in theirs.items():
        assert gradient.norm() > 1e-6, f"{name} must have a gradient worth comparing"
        torch.testing.assert_close(
            mine[name],
            gradient,
            rtol=1e-4,
            atol=1e-6 * gradient.norm().item(),
            msg=f"gradient of {name} differs from TRL's",
        )


@pytest.mark.parametrize(("objective", "loss_type"), [("sft", "nll"), ("dft", "dft")])
def test_sft_and_dft_are_those_of_trl(objective, loss_type, pieces, common):
    rows = [
        {
            "input_ids": prompt + completion,
            "completion_mask": [0] * len(prompt) + [1] * len(completion),
        }
        for prompt, completion in zip(PROMPTS, COMPLETIONS, strict=True)
    ]
    arguments = SFTConfig(**common, loss_type=loss_type, completion_only_loss=True, max_length=None)
    trainer = SFTTrainer(**pieces, args=arguments, train_dataset=Dataset.from_list(rows))
    model = fill_adapter(trainer.model)
    batch = trainer.data_collator(list(trainer.train_dataset))
    assert (batch["labels"] != -100).sum() == sum(map(len, COMPLETIONS)), (
        "TRL trains on completion tokens only"
    )
    assert_same(model, ours(model, objective), trainer.compute_loss(model, dict(batch)))


@pytest.mark.parametrize(
    ("objective", "loss_type", "beta", "pairs"),
    [
        ("dpo", "sigmoid", 0.1, ((1, 3), (0, 2))),
        ("dpo-length-normalised", "sigmoid_norm", 5.0, ((1, 3), (0, 2))),
        ("ipo", "ipo", 0.4, ((0, 3),)),
    ],
)
def test_losses_of_pairs_with_a_reference_are_those_of_trl(
    objective, loss_type, beta, pairs, pieces, common
):
    words = [{"prompt": "Tom has", "chosen": " 3 apples.", "rejected": " 4 apples."}]
    trainer = DPOTrainer(
        **pieces,
        args=DPOConfig(**common, beta=beta, loss_type=loss_type, max_length=None),
        train_dataset=Dataset.from_list(words),
    )
    model = fill_adapter(trainer.model)
    batch = trainer.data_collator(
        [
            {"prompt_ids": PROMPTS[i], "chosen_ids": COMPLETIONS[i], "rejected_ids": COMPLETIONS[j]}
            for i, j in pairs
        ]
    )
    model.train()
    their_loss = trainer.compute_loss(model, dict(batch))

    prompts = [PROMPTS[i] for i, _ in pairs for _ in range(2)]
    input_ids, completion_mask = language_models.pad(
        prompts, [COMPLETIONS[i] for pair in pairs for i in pair], 0
    )
    with model.disable_adapter(), torch.no_grad():
        reference = logprobs.token_logprobs(model, input_ids, completion_mask)
    mask, none = completion_mask[:, 1:].float(), torch.zeros(len(prompts))
    rows = objectives.Rows(mask, none, none, none, 0 * mask, reference)
    loss, weight = objectives.objective(objective).loss(
        logprobs.token_logprobs(model, input_ids, completion_mask), rows
    )
    start, start_weight = objectives.objective(objective).loss(reference, rows)
    assert abs((loss / weight - start / start_weight).item()) > 1e-3, (
        "the adapter must have left the base, or the comparison says nothing"
    )
    # TRL divides both scores by their lengths, here both 4: its beta of .4 is the .1 of sums, its
    # loss a sixteenth.
    if objective == "ipo":
        their_loss = 16 * their_loss
    assert_same(model, loss / weight, their_loss)


def test_kto_is_that_of_trl_where_the_baseline_is_zero(pieces, common):
    words = [
        {"prompt": "Tom has", "completion": " 3 apples.", "label": True},
        {"prompt": "Tom has", "completion": " 4 apples.", "label": False},
    ]
    trainer = KTOTrainer(
        **pieces,
        args=KTOConfig(**common, beta=0.1, max_length=None),
        train_dataset=Dataset.from_list(words),
    )
    # Their baseline comes from completions of other prompts, ours from the batch.
    trainer.calculate_KL = False
    model = fill_adapter(trainer.model)
    input_ids, completion_mask = language_models.pad(PROMPTS, COMPLETIONS, 0)
    reward = torch.tensor([1.0, 0.0, 0.0, 1.0])
    model.train()
    batch = {
        "input_ids": input_ids,
        "attention_mask": (input_ids > 0).long(),
        "completion_mask": completion_mask,
        "label": reward,
    }
    their_loss = trainer.compute_loss(model, batch)

    with model.disable_adapter(), torch.no_grad():
        reference = logprobs.token_logprobs(model, input_ids, completion_mask)
    logp = logprobs.token_logprobs(model, input_ids, completion_mask)
    mask, none = completion_mask[:, 1:].float(), torch.zeros(4)
    assert ((logp - reference) * mask).sum() < 0, (
        "on average the adapter lowers these completions, so that our baseline is 0 too"
    )
    loss, weight = objectives.kto(
        logp, objectives.Rows(mask, reward, none, none, 0 * mask, reference)
    )
    assert abs((loss / weight).item() - 0.5) > 1e-4, (
        "the adapter must have left the base, or the comparison says nothing"
    )
    assert_same(model, loss / weight, their_loss)


def test_simpo_is_that_of_trl():
    torch.manual_seed(1)
    logp = -2 * torch.rand(6, 5)
    mask = (torch.arange(5) < torch.tensor([5, 2, 3, 4, 1, 5])[:, None]).float()
    logp, none = (logp * mask).requires_grad_(True), torch.zeros(6)
    settings = SimpleNamespace(
        loss_type="simpo",
        simpo_gamma=1.0,
        beta=2.0,
        alpha=0.0,
        label_smoothing=0.0,
        accelerator=SimpleNamespace(device="cpu"),
    )
    means = (logp * mask).sum(1) / mask.sum(1)
    theirs = CPOTrainer.cpo_loss(settings, means[0::2], means[1::2])[0].mean()
    loss, weight = objectives.simpo(
        logp, objectives.Rows(mask, none, none, none, 0 * mask, 0 * mask)
    )
    torch.testing.assert_close(loss / weight, theirs, msg="SimPO with beta 2 and a margin of 1")
    gradients = [
        torch.autograd.grad(value, logp, retain_graph=True)[0] for value in (loss / weight, theirs)
    ]
    torch.testing.assert_close(*gradients, msg="gradient of SimPO differs from TRL's")
