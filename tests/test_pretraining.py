"""Pretraining: interrupted and resumed it is the same, its tokenizer loses nothing, and it never
sees a held-out problem."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter_geometry import storage
from helpers import profiles, store
from helpers.data import problems
from helpers.models import loading
from helpers.training import pretraining

TINY = profiles.load("tiny")


@pytest.fixture
def little(workplace):
    """A profile that pretrains a very small model for six steps, writing under `workplace`."""
    base = TINY.pretraining.models["base"].model_copy(update={"steps": 6})
    shape = {
        **TINY.pretraining.architecture,
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "head_dim": 16,
        "intermediate_size": 32,
    }
    little = TINY.pretraining.model_copy(
        update={"architecture": shape, "batch_size": 8, "models": {"base": base}}
    )
    return TINY.model_copy(
        update={
            "name": "little",
            "pretraining": little,
            "models": {**TINY.models, "base": "results/little/base"},
        }
    )


def weights(profile):
    return loading.AutoModelForCausalLM.from_pretrained(
        store.ROOT / profile.models["base"]
    ).state_dict()


def test_killed_and_resumed_it_makes_the_same_weights(little, monkeypatch):
    monkeypatch.setattr(pretraining, "_CHECKPOINTS", 3)
    tokenizer = pretraining.make_tokenizer(little)  # once, since it takes a second
    monkeypatch.setattr(pretraining, "make_tokenizer", lambda _: tokenizer)
    pretraining.pretrain(little, "base")
    whole = weights(little)
    storage.remove(store.results("little"))
    step, steps = pretraining._step, iter(range(100))

    def killed(*arguments):
        if next(steps) == 4:
            raise KeyboardInterrupt
        return step(*arguments)

    monkeypatch.setattr(pretraining, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        pretraining.pretrain(little, "base")
    monkeypatch.setattr(pretraining, "_step", step)
    pretraining.pretrain(little, "base")
    for name, value in weights(little).items():
        assert torch.equal(value, whole[name]), (
            f"{name} differs: the resumed run left the trajectory"
        )


def test_a_pretrained_model_is_adapted_by_lora_and_read_as_one_model(little):
    how = little.pretraining.model_copy(
        update={
            "architecture": None,
            "vocabulary": None,
            "start": "start",
            "lora": TINY.lora,
            "drill_share": 0.0,
        }
    )
    adapted = little.model_copy(
        update={
            "pretraining": how,
            "models": {
                **TINY.models,
                "start": TINY.models["base"],
                "base": "results/little/adapter",
            },
        }
    )
    pretraining.pretrain(adapted, "base")
    folder = store.ROOT / "results" / "little" / "adapter"
    assert {path.name for path in folder.iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
        "made.json",
    }, "no copy of the start"
    start, base = (loading.load_model(adapted, name).state_dict() for name in ("start", "base"))
    changed = {name for name, value in base.items() if not torch.equal(value, start[name])}
    assert changed == {name for name in start if name.split(".")[-2] in TINY.lora.modules}, (
        "the projections with an adapter, and nothing else"
    )


@pytest.mark.parametrize(
    "change",
    [
        {"vocabulary": None},
        {"architecture": None},
        {"start": "base"},
        {"start": "base", "lora": {"rank": 1, "alpha": 1, "modules": ["q_proj"]}},
    ],
)
def test_weights_from_nowhere_or_from_two_places_are_refused(change):
    with pytest.raises(ValueError, match="either architecture and vocabulary, or start and lora"):
        profiles.PretrainingSettings(**{**TINY.pretraining.model_dump(), **change})


def test_no_training_text_is_a_problem_of_the_study():
    held_out = problems.held_out_chains(TINY.problems)
    questions = {
        problem.question
        for drawn in problems.problem_sets(TINY.problems).values()
        for problem in drawn
    }
    rng = np.random.default_rng(0)
    drawn = [
        pretraining.draw_text(rng, TINY, TINY.pretraining.models["base"], held_out)[0]
        for _ in range(2000)
    ]
    assert not questions & set(drawn), "a held-out problem was a training text"


TOKENIZER = loading.load_tokenizer(TINY)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=40))
def test_any_text_survives_the_tokenizer(text):
    for special in TOKENIZER.all_special_tokens:
        text = text.replace(special, "")
    assert TOKENIZER.decode(TOKENIZER(text).input_ids) == text, "byte-level tokens lose nothing"


def test_digits_are_single_tokens():
    assert [TOKENIZER.decode([token]) for token in TOKENIZER("1204").input_ids] == list("1204"), (
        "as in Qwen3"
    )


def test_the_shipped_tokenizer_is_the_one_that_the_profile_makes():
    assert pretraining.make_tokenizer(TINY).get_vocab() == TOKENIZER.get_vocab(), (
        "the recipe and the file have parted"
    )


def test_a_model_without_recipe_is_refused():
    with pytest.raises(ValueError, match="does not say how to make a model 'base'"):
        pretraining.pretrain(profiles.load("smoke"), "base")
