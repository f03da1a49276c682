"""Sampling against transformers' generate and against exact probabilities; the table, its refusals
and its choices of rows."""

import itertools
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as draw
from scipy.stats import chisquare

from helpers.data import grading, problems, rollouts
from helpers.models import loading, logprobs, sampling

PROMPTS = [
    [3, 4, 5],
    [6, 1],
    [7, 8, 9, 10, 11, 12, 13],
    [14, 15],
    [16, 17, 18, 19],
    [20, 2],
    [21, 22, 23, 24, 25],
    [26, 27],
    [28, 29, 30],
    [31] * 9,
]


def generated(model, prompt, end_id, max_new_tokens):
    """Greedy completion of one prompt alone, by transformers."""
    ids = torch.tensor([prompt])
    output = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=max_new_tokens,
        eos_token_id=end_id,
        pad_token_id=0,
    )
    return output[0, len(prompt) :].tolist()


def frequent_end(model, max_new_tokens):
    """A token that ends many greedy completions, and ends them at different places."""
    free = [generated(model, prompt, None, max_new_tokens) for prompt in PROMPTS]
    return Counter(token for completion in free for token in set(completion)).most_common(1)[0][0]


@pytest.mark.parametrize("adapted", [False, True], ids=["base", "with an adapter"])
def test_greedy_sampling_is_that_of_generate_while_slots_are_refilled(
    adapted, tiny_model, with_adapter
):
    model = with_adapter(tiny_model()).eval() if adapted else tiny_model()
    end_id = frequent_end(model, 12)
    expected = [generated(model, prompt, end_id, 12) for prompt in PROMPTS]
    assert len({len(completion) for completion in expected}) >= 3, (
        "completions must end at different places, or no gap ever closes"
    )
    for batch_size in (1, 3, 10):
        completions = sampling.sample(
            model, PROMPTS, max_new_tokens=12, end_ids=[end_id], batch_size=batch_size
        )
        assert completions == expected, (
            f"batch of {batch_size}: greedy tokens must be those of transformers, prompt by prompt"
        )


def test_greedy_sampling_of_one_token_prompts_is_that_of_generate(tiny_model):
    model = tiny_model()
    expected = [generated(model, [token], 0, 6) for token in range(10, 16)]
    for batch_size in (1, 2, 6):
        completions = sampling.sample(
            model,
            [[token] for token in range(10, 16)],
            max_new_tokens=6,
            end_ids=[0],
            batch_size=batch_size,
        )
        assert completions == expected, (
            f"batch of {batch_size}: a prompt of one token is a prompt, not a step of decoding"
        )


def test_the_adapter_changes_what_is_sampled(tiny_model, with_adapter):
    plain = sampling.sample(tiny_model(), PROMPTS, max_new_tokens=12, end_ids=[0], batch_size=3)
    assert (
        sampling.sample(
            with_adapter(tiny_model()), PROMPTS, max_new_tokens=12, end_ids=[0], batch_size=3
        )
        != plain
    ), "an adapter with B != 0 must be heard"


def test_samples_depend_on_seed_and_index_alone(tiny_model):
    model, indices = tiny_model(), list(range(100, 110))
    how = {"max_new_tokens": 15, "end_ids": [0], "temperature": 1.0, "seed": 4}
    expected = sampling.sample(model, PROMPTS, batch_size=10, indices=indices, **how)
    for batch_size in (1, 3, 4):
        assert (
            sampling.sample(model, PROMPTS, batch_size=batch_size, indices=indices, **how)
            == expected
        ), f"batch of {batch_size} samples the same"
    order = [7, 2, 9, 0, 5, 1, 8, 3, 6, 4]
    shuffled = sampling.sample(
        model, [PROMPTS[i] for i in order], batch_size=3, indices=[indices[i] for i in order], **how
    )
    assert shuffled == [expected[i] for i in order], "the order of the prompts must not matter"
    assert (
        sampling.sample(model, PROMPTS[4:6], batch_size=2, indices=indices[4:6], **how)
        == expected[4:6]
    ), "a part is sampled as within the whole"
    assert (
        sampling.sample(model, PROMPTS, batch_size=10, indices=indices, **{**how, "seed": 5})
        != expected
    ), "another seed, other samples"


def test_equal_prompts_are_read_once_and_sampled_as_if_each_were_alone(tiny_model, monkeypatch):
    model, how = tiny_model(), {"max_new_tokens": 15, "end_ids": [0], "temperature": 1.0, "seed": 4}
    repeated = [prompt for prompt in PROMPTS for _ in range(4)]
    alone = [
        sampling.sample(model, [prompt], batch_size=1, indices=[number], **how)[0]
        for number, prompt in enumerate(repeated)
    ]
    read, forward = [], model.model.forward
    monkeypatch.setattr(
        model.model,
        "forward",
        lambda *args, **inputs: read.append(inputs["input_ids"].shape) or forward(*args, **inputs),
    )
    for batch_size in (5, 8, 40):
        assert sampling.sample(model, repeated, batch_size=batch_size, **how) == alone, (
            f"batch of {batch_size}: the four of a prompt have draws of their own"
        )
    assert max(rows for rows, width in read if width > 1) == len(PROMPTS), (
        "all forty start together: ten prompts are read, not forty"
    )


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampled_tokens_follow_the_softmax(temperature, tiny_model):
    model, count = tiny_model(vocabulary=6, context=16, seed=3), 4000
    prompt = [1, 2, 3]
    completions = sampling.sample(
        model,
        [prompt] * count,
        max_new_tokens=2,
        end_ids=[],
        batch_size=500,
        temperature=temperature,
        seed=1,
    )
    with torch.no_grad():
        first = torch.softmax(
            model(torch.tensor([prompt])).logits[0, -1].double() / temperature, -1
        )
        second = torch.softmax(
            model(torch.tensor([[*prompt, token] for token in range(6)])).logits[:, -1].double()
            / temperature,
            -1,
        )
    joint = (first[:, None] * second).flatten().numpy()
    counted = Counter(map(tuple, completions))
    observed = np.array([counted[pair] for pair in itertools.product(range(6), repeat=2)])
    large = joint * count >= 5
    observed, expected = (
        np.append(values[large], values[~large].sum()) for values in (observed, joint * count)
    )
    keep = expected > 0
    p = chisquare(observed[keep], expected[keep]).pvalue
    assert large.sum() >= 6, "the distribution must be spread, or the test has no power"
    assert p > 0.001, (
        "pairs of first and second tokens follow the model's own probabilities "
        f"(chi-square p = {p:.2g})"
    )


def test_completions_stop_at_the_limit_the_context_and_the_end_token(tiny_model):
    model = tiny_model(context=12)
    prompts = [[1] * 5, [2] * 10, [3] * 11]
    free = [generated(model, prompt, None, min(4, 12 - len(prompt))) for prompt in prompts]
    unused = min(set(range(40)) - {token for completion in free for token in completion})
    completions = sampling.sample(model, prompts, max_new_tokens=4, end_ids=[unused], batch_size=2)
    assert [len(completion) for completion in completions] == [4, 2, 1], (
        "at most 4 new tokens, and prompt + completion at most the context of 12"
    )
    end_id = completions[0][1]
    ended = sampling.sample(model, [[1] * 5], max_new_tokens=4, end_ids=[end_id], batch_size=2)[0]
    assert ended == completions[0][: completions[0].index(end_id) + 1], (
        "the end token closes the completion and is part of it"
    )
    assert sampling.sample(model, [], max_new_tokens=4, end_ids=[0], batch_size=2) == [], (
        "no prompts, no completions"
    )


def test_a_prompt_that_fills_the_context_is_refused_by_its_index(tiny_model):
    with pytest.raises(ValueError, match="prompt 8 has 12 tokens and the model's context is 12"):
        sampling.sample(
            tiny_model(context=12),
            [[1], [1] * 12],
            max_new_tokens=1,
            end_ids=[0],
            batch_size=2,
            indices=[7, 8],
        )


@pytest.mark.parametrize("adapted", [False, True], ids=["base", "with an adapter"])
def test_scores_are_the_log_softmax_of_the_full_logits(adapted, tiny_model, with_adapter):
    model = with_adapter(tiny_model()).eval() if adapted else tiny_model()
    completions = [[index + 1] * (1 + index % 4) + [0] for index in range(len(PROMPTS))]
    scores = logprobs.score(model, PROMPTS, completions, batch_size=3)
    for prompt, completion, values in zip(PROMPTS, completions, scores, strict=True):
        with torch.no_grad():
            logp = torch.log_softmax(
                model(torch.tensor([prompt + completion])).logits[0].double(), -1
            )
        expected = [logp[len(prompt) + t - 1, token].item() for t, token in enumerate(completion)]
        assert values == pytest.approx(expected, rel=1e-4, abs=1e-5), (
            "log pi(y_t | x, y_<t), unpadded and in the order given"
        )


# --- the table -----------------------------------------------------------------------------------


def test_rows_beyond_the_context_or_the_vocabulary_are_refused_by_their_index(tiny_model):
    model = tiny_model(vocabulary=40, context=16)
    assert [len(values) for values in logprobs.score(model, [[1] * 6], [[2] * 10])] == [10], (
        "a row that fills the context is read"
    )
    with pytest.raises(ValueError, match=r"row 1 has 17 tokens.*context is 16"):
        logprobs.score(model, [[1], [1] * 6], [[2], [2] * 11])
    with pytest.raises(
        ValueError, match=r"row 0 has 3 tokens, the largest 40; .*its vocabulary 40"
    ):
        logprobs.score(model, [[1, 2]], [[40]])


def test_a_teacher_with_another_tokenizer_is_refused(workplace, smoke, monkeypatch):
    load = loading.load_tokenizer

    def other(profile, name="base"):
        tokenizer = load(profile, name)
        if name == "teacher":
            tokenizer.add_tokens(["hmm"])
        return tokenizer

    monkeypatch.setattr(loading, "load_tokenizer", other)
    with pytest.raises(
        ValueError, match="the teacher and the base of profile 'smoke' have different tokenizers"
    ):
        rollouts.make_table(smoke)


def test_the_table_holds_what_the_generator_and_the_grader_say(table, smoke):
    gold = {
        problem.problem_id: problem.answer
        for problem in problems.problem_sets(smoke.problems)["train"]
    }
    assert len(table) == smoke.problems.train * smoke.rollouts.samples, "K rows per prompt"
    assert (table.gold == table.problem_id.map(gold)).all(), "each row knows its problem's answer"
    for row in table.itertuples():
        assert row.reward == grading.grade(row.completion, row.gold).correct, (
            "the reward is the verifier's"
        )
        assert (
            row.tokens == len(row.completion_ids) == len(row.logp_behaviour) == len(row.logp_base)
        ), "one log-probability per completion token"
    end = loading.load_tokenizer(smoke).eos_token_id
    assert all(ids[-1] == end for ids in table.completion_ids[~table.truncated]), (
        "the end token is part of a completion"
    )
    assert 0 < table.reward.mean() < 1, "errors make some rollouts wrong"


def test_the_table_holds_the_log_probabilities_of_the_base(table, smoke):
    expected = logprobs.score(
        loading.load_model(smoke, "base"),
        list(table.prompt_ids[:3]),
        list(table.completion_ids[:3]),
    )
    for stored, values in zip(table.logp_base, expected, strict=False):
        assert stored == pytest.approx(values, rel=1e-4), "logp_base is log pi_0"


@pytest.mark.parametrize(
    ("part", "field"), [("rollouts", "seed"), ("rollouts", "samples"), ("problems", "seed")]
)
def test_a_table_made_with_other_settings_is_refused_naming_them(part, field, table, smoke):
    settings = getattr(smoke, part)
    edited = smoke.model_copy(
        update={part: settings.model_copy(update={field: getattr(settings, field) + 1})}
    )
    with pytest.raises(
        ValueError,
        match=rf"results/smoke/rollouts.parquet was made with other {part}"
        ".*python -m helpers rollouts smoke",
    ):
        rollouts.load_table(edited)


def test_a_table_does_not_depend_on_the_batch_size(table, smoke):
    edited = smoke.model_copy(
        update={"rollouts": smoke.rollouts.model_copy(update={"batch_size": 3})}
    )
    assert len(rollouts.load_table(edited)) == len(table), (
        "the batch size is no part of what was sampled"
    )


def test_an_interrupted_table_goes_on_after_its_last_part(table, smoke, monkeypatch):
    path = rollouts.table_path(smoke)
    path.unlink()
    monkeypatch.setattr(rollouts, "_BATCHES_A_PART", 0)  # a part is then a single prompt
    sampled, sample_rollouts = [], rollouts.sample_rollouts

    def counted(profile, chosen, **how):
        if len(sampled) == 3:
            sampled.append("killed")
            raise KeyboardInterrupt
        sampled.extend(problem.problem_id for problem in chosen)
        return sample_rollouts(profile, chosen, **how)

    monkeypatch.setattr(rollouts, "sample_rollouts", counted)
    with pytest.raises(KeyboardInterrupt):
        rollouts.make_table(smoke)
    assert not path.exists(), "whole or not at all"
    rollouts.make_table(smoke)
    sampled.remove("killed")
    assert sampled == list(table.problem_id.unique()), (
        "each prompt once, finished ones are taken up"
    )
    pd.testing.assert_frame_equal(rollouts.with_group_columns(rollouts.load_table(smoke)), table)
    assert not list((path.parent / "checkpoints").glob("rollouts-*")), "no parts are left behind"


def test_a_missing_table_says_how_to_make_it(workplace, smoke):
    with pytest.raises(
        FileNotFoundError,
        match=r"results/smoke/rollouts\.parquet: make it with "
        "`python -m helpers rollouts smoke teacher`",
    ):
        rollouts.load_table(smoke)


def test_sampled_rows_of_a_part_are_those_of_the_whole(workplace, smoke):
    sampled = smoke.model_copy(
        update={"rollouts": smoke.rollouts.model_copy(update={"source": "model"})}
    )
    chosen = problems.problem_sets(smoke.problems)["train"]
    whole, part = (
        rollouts.sample_rollouts(sampled, chosen),
        rollouts.sample_rollouts(sampled, chosen[2:4], batch_size=2),
    )
    k = smoke.rollouts.samples
    assert list(part.completion_ids) == list(whole.completion_ids[2 * k : 4 * k]), (
        "notebook 02 makes part of the table again and must find the same rows"
    )
    assert whole.tokens.max() <= smoke.rollouts.max_new_tokens, "completions are cut at the limit"
    assert whole.groupby("problem_id").completion.nunique().max() > 1, (
        "the K samples of a prompt are drawn apart"
    )


def test_advantages_sum_to_zero_in_each_group(table):
    for _, group in table.groupby("problem_id"):
        rate = group.reward.mean()
        assert group.advantage.sum() == pytest.approx(0, abs=1e-6), (
            "advantage = reward - group mean"
        )
        assert group.spread.to_numpy() == pytest.approx(np.sqrt(rate * (1 - rate)), abs=1e-6), (
            "the standard deviation of a coin with n in the denominator"
        )


@pytest.fixture
def hand_made():
    """Prompts: a is mixed, b all right, c all wrong, d mixed with paths that repeat."""
    lines = [
        ("a", 0, "wrong one 1+1=3"),
        ("a", 1, "1+1=2"),
        ("a", 0, "1+1=4"),
        ("a", 1, "2*1=2"),
        ("b", 1, "3+3=6"),
        ("b", 1, "3+3=6 indeed"),
        ("c", 0, "x"),
        ("c", 0, "y"),
        ("d", 1, "5+5=10"),
        ("d", 0, "5+5=11"),
        ("d", 1, "2*5=10 so"),
        ("d", 1, "well, 5+5=10 it is"),
        ("d", 1, "2*5=10 so"),
    ]
    return pd.DataFrame(lines, columns=["problem_id", "reward", "completion"])


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ("all", {"a": [0, 1, 2, 3], "b": [4, 5], "c": [6, 7], "d": [8, 9, 10, 11, 12]}),
        ("correct", {"a": [1, 3], "b": [4, 5], "d": [8, 10, 11, 12]}),
        ("correct-one", {"a": [1], "b": [4], "d": [8]}),
        ("pairs", {"a": [1, 0], "d": [8, 9]}),
        ("chosen", {"a": [1], "d": [8]}),
    ],
)
def test_rows_are_chosen_for_each_prompt(rows, expected, hand_made):
    selected = rollouts.select(hand_made, rows)
    assert selected == expected, f"rows {rows!r}: groups without a row of the kind are left out"
    assert list(selected) == list(expected), "prompts stay in the table's order"


@pytest.mark.parametrize("rows", ["random", "random-2"])
def test_random_rows_are_as_many_as_the_correct_ones_and_blind_to_rewards(rows, hand_made):
    selected = rollouts.select(hand_made, rows)
    numbers = sorted(itertools.chain(*selected.values()))
    assert len(numbers) == len(set(numbers)) == (hand_made.reward > 0).sum(), (
        "as many rows as RFT takes, each once"
    )
    assert all(
        hand_made.problem_id[number] == problem_id
        for problem_id, chosen in selected.items()
        for number in chosen
    ), "rows stay with their prompt"
    order = list(hand_made.problem_id.unique())
    assert list(selected) == [problem_id for problem_id in order if problem_id in selected], (
        "prompts stay in the table's order"
    )
    other = hand_made.assign(reward=hand_made.reward.to_numpy()[::-1])
    assert rollouts.select(other, rows) == selected, (
        "which rollouts are right plays no part, only how many"
    )


def test_the_two_random_choices_differ_and_repeat(hand_made):
    first, second = (rollouts.select(hand_made, rows) for rows in ("random", "random-2"))
    assert first != second, "another draw"
    assert rollouts.select(hand_made, "random") == first, (
        "a draw does not depend on the state of a generator"
    )


def test_random_rows_hold_right_ones_at_the_tables_own_rate():
    table = pd.DataFrame(
        {
            "problem_id": np.repeat(np.arange(1000), 4).astype(str),
            "reward": np.tile([1, 1, 1, 0], 1000),
            "completion": "",
        }
    )
    numbers = list(itertools.chain(*rollouts.select(table, "random").values()))
    assert table.reward[numbers].mean() == pytest.approx(0.75, abs=0.03), (
        "a sample without regard to rewards keeps the pass rate"
    )


def test_distinct_paths_are_selected_once_each_and_far_from_the_others():
    lines = ["9*9=81", "4+4=8 zzzzzzzzzzzz", "4+4=8", "9*9=81 9"]
    one = pd.DataFrame({"problem_id": "p", "reward": [1, 1, 1, 0], "completion": lines})
    assert rollouts.select(one, "correct-distinct") == {"p": [0, 1]}, (
        "of two with equal equations the one farther from the path already selected"
    )


def test_distinct_paths_have_one_row_per_list_of_equations(hand_made):
    for problem_id, numbers in rollouts.select(hand_made, "correct-distinct").items():
        paths = [grading.written_equations(hand_made.completion[number]) for number in numbers]
        right = hand_made[(hand_made.problem_id == problem_id) & (hand_made.reward > 0)]
        assert sorted(paths) == sorted(
            {grading.written_equations(text) for text in right.completion}
        ), "every reasoning path of a prompt exactly once"


def test_groups_of_one_have_no_advantage_and_no_pairs():
    table = rollouts.with_group_columns(
        pd.DataFrame({"problem_id": ["a", "b"], "reward": [1.0, 0.0], "completion": ["x", "y"]})
    )
    assert table.advantage.tolist() == table.spread.tolist() == [0.0, 0.0], (
        "a rollout alone is its own mean"
    )
    assert rollouts.select(table, "correct") == {"a": [0]}
    with pytest.raises(ValueError, match="no rows of the kind 'pairs'"):
        rollouts.select(table, "pairs")


def test_choices_that_cannot_be_met_are_refused(hand_made):
    with pytest.raises(
        ValueError, match="unknown choice of rows 'best': choose one of all, correct"
    ):
        rollouts.select(hand_made, "best")
    with pytest.raises(ValueError, match="no rows of the kind 'pairs'"):
        rollouts.select(hand_made[hand_made.problem_id == "b"], "pairs")


def test_group_statistics_count_rollouts_and_distinct_right_ones(hand_made):
    statistics = rollouts.group_statistics(hand_made).set_index("problem_id")
    assert statistics.n.to_dict() == {"a": 4, "b": 2, "c": 2, "d": 5}, "rollouts per prompt"
    assert statistics.correct.to_dict() == {"a": 2, "b": 2, "c": 0, "d": 4}, "right ones"
    assert statistics.pass_rate.to_dict() == {"a": 0.5, "b": 1.0, "c": 0.0, "d": 0.8}, "their share"
    assert statistics.distinct_correct.to_dict() == {"a": 2, "b": 2, "c": 0, "d": 3}, (
        "different right completions"
    )
    assert statistics.n.dtype.kind == statistics.correct.dtype.kind == "i", "counts are integers"


def textbook_distance(a, b):
    row = list(range(len(b) + 1))
    for i, letter in enumerate(a, 1):
        before, row[0] = row[0], i
        for j, other in enumerate(b, 1):
            before, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, before + (letter != other))
    return row[-1]


@given(draw.text("ab1🍎", max_size=9), draw.text("ab1🍎", max_size=9))
def test_edit_distance_is_the_textbook_recurrence(a, b):
    assert (
        rollouts._edit_distance(a, b) == textbook_distance(a, b) == rollouts._edit_distance(b, a)
    ), f"Levenshtein distance of {a!r} and {b!r}"


def test_edit_distance_of_known_pairs():
    pairs = {
        ("kitten", "sitting"): 3,
        ("intention", "execution"): 5,
        ("", "abc"): 3,
        ("abc", ""): 3,
        ("same", "same"): 0,
    }
    assert {pair: rollouts._edit_distance(*pair) for pair in pairs} == pairs, "textbook values"
