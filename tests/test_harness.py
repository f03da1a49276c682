"""lm-evaluation-harness: its rules on texts, and, where it is installed, its run compared with ours
on one model, one prompt and one set of problems."""

import importlib.util
import json

import pytest
import yaml

from helpers import profiles, store
from helpers.data import problems
from helpers.evaluation import answering, harness
from helpers.models import loading


@pytest.mark.parametrize(
    ("completion", "answer", "strict", "flexible"),
    [
        ("3 + 4 = 7\n#### 7", "7", True, True),
        ("#### 1,234", "1234", True, True),
        ("#### 12\nNo, #### 13", "13", False, True),
        ("#### 12 and then 13", "12", True, False),
        ("So \\boxed{42}", "42", False, True),
        ("It costs $42.", "42", False, True),
        ("-7", "-7", False, True),
        ("I do not know", "42", False, False),
    ],
)
def test_rules_take_the_first_number_behind_the_mark_and_the_last_of_all(
    completion, answer, strict, flexible
):
    assert harness.grade(completion, answer) == {"strict": strict, "flexible": flexible}


def test_stored_answers_are_graded_again(smoke, workplace):
    again = harness.regraded(smoke, "base")
    assert (again.flexible == again.correct_flexible).all(), (
        "whole numbers are read alike by both last-number rules"
    )
    assert not again.strict.any(), "no answer of ours comes after ####"


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm_eval 0.4.13 brings thirty packages that nothing else uses",
)
def test_the_harness_itself_gets_the_same_answers_and_the_same_scores(tmp_path):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    tiny = profiles.load("tiny")
    chosen = problems.problem_sets(tiny.problems)["test"][:40]
    (tmp_path / "test.jsonl").write_text(
        "".join(
            json.dumps({"question": one.question, "answer": f"Some words.\n#### {one.answer}"})
            + "\n"
            for one in chosen
        )
    )
    patterns = {
        "strict": {"regex_pattern": r"#### (\-?[0-9\.\,]+)"},
        "flexible": {"group_select": -1, "regex_pattern": r"(-?[$0-9.,]{2,})|(-?[0-9]+)"},
    }
    (tmp_path / "task.yaml").write_text(
        yaml.safe_dump(
            {
                "task": "fixture",
                "dataset_path": "json",
                "dataset_kwargs": {"data_files": {"test": str(tmp_path / "test.jsonl")}},
                "test_split": "test",
                "output_type": "generate_until",
                "doc_to_text": "{{question}}",
                "doc_to_target": "{{answer}}",
                "generation_kwargs": {
                    "until": [],
                    "do_sample": False,
                    "max_gen_toks": tiny.evaluation.max_new_tokens,
                },
                "metric_list": [
                    {
                        "metric": "exact_match",
                        "aggregation": "mean",
                        "higher_is_better": True,
                        "ignore_case": True,
                        "regexes_to_ignore": [",", r"\$", "(?s).*#### ", r"\.$"],
                    }
                ],
                "filter_list": [
                    {
                        "name": name,
                        "filter": [{"function": "regex", **pattern}, {"function": "take_first"}],
                    }
                    for name, pattern in patterns.items()
                ],
            }
        )
    )
    theirs = simple_evaluate(
        model="hf",
        model_args=f"pretrained={store.ROOT / 'data/models/tiny/base'},dtype=float32",
        tasks=["fixture"],
        device="cpu",
        batch_size=8,
        apply_chat_template=True,
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        log_samples=True,
        bootstrap_iters=0,
    )
    ours = answering.answer(tiny, loading.load_model(tiny), chosen)
    written = {
        sample["doc"]["question"]: sample["resps"][0][0] for sample in theirs["samples"]["fixture"]
    }
    assert [written[one.question].strip() for one in chosen] == [
        text.strip() for text in ours.completion
    ], "the same prompt, the same greedy answers"
    grades = [
        harness.grade(text, one.answer) for text, one in zip(ours.completion, chosen, strict=True)
    ]
    for rule in patterns:
        assert theirs["results"]["fixture"][f"exact_match,{rule}"] == pytest.approx(
            sum(one[rule] for one in grades) / len(grades)
        ), f"the {rule} rule"
    assert 0.3 < sum(one["flexible"] for one in grades) / len(grades) < 1, (
        "scores that could differ"
    )
