"""Shared fixtures: the smoke profile, a repository of its own for a test to write results in, and
tiny random models."""

import pytest
import torch
from hypothesis import settings
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from helpers import profiles, store
from helpers.data import rollouts

torch.set_num_threads(1)
settings.register_profile("fast", max_examples=60, deadline=None, derandomize=True)
settings.load_profile("fast")


def pytest_configure(config):
    config.addinivalue_line("filterwarnings", "ignore:.*gradient_checkpointing.*:FutureWarning")


@pytest.fixture(scope="session")
def smoke():
    return profiles.load("smoke")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    """The user's cache folder, empty: no test reads or writes the real one."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """An empty repository root that shares data/ with the real one, so that results are written and
    read there alone."""
    (tmp_path / "data").symlink_to(store.ROOT / "data")
    monkeypatch.setattr(store, "ROOT", tmp_path)
    return tmp_path


@pytest.fixture
def table(smoke, workplace):
    """The smoke profile's table of rollouts, made in `workplace`, with group columns."""
    rollouts.make_table(smoke)
    return rollouts.with_group_columns(rollouts.load_table(smoke))


@pytest.fixture
def tiny_model():
    """Make a random Qwen3 with two layers and grouped keys; weights are wide, so that its choices
    differ from token to token."""

    def make(vocabulary=40, context=64, seed=0):
        torch.manual_seed(seed)
        config = Qwen3Config(
            vocab_size=vocabulary,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            intermediate_size=32,
            max_position_embeddings=context,
            tie_word_embeddings=False,
            initializer_range=0.5,
            bos_token_id=None,
            eos_token_id=None,
            pad_token_id=None,
        )
        return Qwen3ForCausalLM(config).eval().requires_grad_(False)

    return make


def fill_adapter(model, seed=0, size=0.3):
    """Give the LoRA factors B, which start at zero, random values."""
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn(weight.shape, generator=generator) * size
    return model


@pytest.fixture
def with_adapter():
    """Attach a LoRA adapter whose B is not zero."""

    def attach(model, **options):
        config = LoraConfig(
            **{
                "r": 2,
                "lora_alpha": 4,
                "target_modules": ["q_proj", "v_proj"],
                "task_type": "CAUSAL_LM",
                **options,
            }
        )
        return fill_adapter(get_peft_model(model, config))

    return attach
