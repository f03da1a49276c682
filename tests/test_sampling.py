"""Where a completion ends: at each end token of the model, as transformers' generate; what is read
and graded of it."""

from collections import Counter

import pytest
import torch
from test_rollouts import PROMPTS, frequent_end

from helpers import profiles
from helpers.data import problems, rollouts
from helpers.evaluation import answering
from helpers.models import loading, sampling


@pytest.fixture(scope="module")
def tokenizer():
    return loading.load_tokenizer(profiles.load("smoke"))


@pytest.mark.parametrize(
    ("named", "expected"), [(None, {2}), (2, {2}), (7, {2, 7}), ([9, 7], {2, 7, 9})]
)
def test_the_end_tokens_are_those_of_the_generation_settings_and_the_tokenizers(
    named, expected, tokenizer, tiny_model, with_adapter
):
    assert tokenizer.eos_token_id == 2
    model = tiny_model()
    model.generation_config.eos_token_id = named
    assert sampling.end_ids_of(model, tokenizer) == expected
    assert sampling.end_ids_of(with_adapter(model), tokenizer) == expected, "with an adapter"


def test_completions_end_where_generate_ends_them_at_each_end_token_of_the_settings(
    tokenizer, tiny_model
):
    model = tiny_model()
    first = frequent_end(model, 12)

    def generated(prompt):
        ids = torch.tensor([prompt])
        mask = torch.ones_like(ids)
        output = model.generate(
            ids, attention_mask=mask, do_sample=False, max_new_tokens=12, pad_token_id=0
        )
        return output[0, len(prompt) :].tolist()

    model.generation_config.eos_token_id = [tokenizer.eos_token_id, first]
    tokens = Counter(token for prompt in PROMPTS for token in set(generated(prompt)) - {first, 2})
    model.generation_config.eos_token_id = [
        tokenizer.eos_token_id,
        first,
        tokens.most_common()[0][0],
    ]
    end_ids = sampling.end_ids_of(model, tokenizer)
    expected = [generated(prompt) for prompt in PROMPTS]
    ends = {completion[-1] for completion in expected if len(completion) < 12}
    assert len(ends - {2}) == 2, "both of the settings' own end tokens must end a completion"
    assert (
        sampling.sample(model, PROMPTS, max_new_tokens=12, end_ids=end_ids, batch_size=3)
        == expected
    )


def test_no_end_token_is_read_as_text_be_it_special_or_not(tokenizer):
    written = tokenizer("so \\boxed{4}", add_special_tokens=False).input_ids
    (figure,) = tokenizer("5", add_special_tokens=False).input_ids
    end_ids = frozenset({2, figure})
    for end in end_ids:
        assert sampling.text_of(tokenizer, [*written, end], end_ids) == "so \\boxed{4}"
        assert not sampling.is_truncated([*written, end], end_ids)
    assert sampling.text_of(tokenizer, [*written, figure], {2}) == "so \\boxed{4}5", (
        "a figure like any other where it ends nothing"
    )
    assert sampling.text_of(tokenizer, written, end_ids) == "so \\boxed{4}", "cut, and kept whole"
    assert sampling.is_truncated(written, end_ids)
    assert sampling.is_truncated([], end_ids), "nothing at all has no end token"


def test_tables_and_answers_take_a_completion_for_whole_at_each_end_token(
    smoke, tokenizer, monkeypatch
):
    chosen = problems.problem_sets(smoke.problems)["train"][:1]
    gold = tokenizer(f"\\boxed{{{chosen[0].answer}}}", add_special_tokens=False).input_ids
    (figure,) = tokenizer("5", add_special_tokens=False).input_ids
    model = loading.load_model(smoke)
    model.generation_config.eos_token_id = [figure, 9]
    written, asked = [[*gold, 2], [*gold, figure], [*gold, 9], gold], []

    def sample(model, prompts, **settings):
        asked.append(set(settings["end_ids"]))
        return written[: len(prompts)]

    monkeypatch.setattr(sampling, "sample", sample)
    settings = smoke.rollouts.model_copy(update={"source": "model"})
    study = smoke.model_copy(update={"rollouts": settings})
    table = rollouts.sample_rollouts(study, chosen, model=model)
    answers = answering.answer(study, model, chosen * 4)
    for name, rows in (("table", table), ("answers", answers)):
        assert list(rows.truncated) == [False, False, False, True], name
        assert set(rows.completion) == {f"\\boxed{{{chosen[0].answer}}}"}, f"{name}: the text alone"
    assert asked == [{2, 9, figure}] * 2, "and sampling was told to stop at each"
