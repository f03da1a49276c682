"""Collections written as the hub's files are, with planted duplicates, overlaps and faults;
overlaps against a search of every window."""

import hashlib
import json
import random

import datasets
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import store
from helpers.data.collections import (
    _load,
    _problem_sets,
    _raw_sets,
    overlaps,
    problem_sets,
    report,
    ungradable,
)
from helpers.data.problem import Problem
from helpers.profiles import CollectionSettings, Source

CARD = """---
license: mit
configs:
- config_name: main
  data_files:
  - split: train
    path: main/train-*
  - split: test
    path: main/test-*
- config_name: socratic
  data_files:
  - split: train
    path: socratic/train-*
  - split: test
    path: socratic/test-*
---
"""
PLANTED = (
    "A farmer in the valley keeps seven brown goats and four white geese behind the old mill, "
    "so how many animals are there?"
)
WORDS = [f"word{number}" for number in range(60)]


@pytest.fixture(autouse=True)
def root(tmp_path, monkeypatch):
    """An empty repository root, a cache of the library's beside it, and nothing remembered of what
    other tests read."""
    _raw_sets.cache_clear()
    _problem_sets.cache_clear()
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(store, "ROOT", tmp_path / "root")
    store.ROOT.mkdir()
    return store.ROOT


def write(file, rows):
    """Rows in the format of the file's name."""
    file.parent.mkdir(parents=True, exist_ok=True)
    if file.suffix == ".json":
        file.write_text(json.dumps(rows))
    elif file.suffix == ".jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif file.suffix == ".csv":
        pd.DataFrame(rows).to_csv(file, index=False)
    else:
        pd.DataFrame(rows).to_parquet(file)


def deepscaler(root, rows):
    write(
        root / "deepscaler" / "deepscaler.json",
        [{"problem": question, "answer": answer, "solution": ""} for question, answer in rows],
    )


def gsm8k(root, rows, split="test", configuration="main"):
    write(
        root / "gsm8k" / configuration / f"{split}-00000-of-00001.parquet",
        [{"question": question, "answer": answer} for question, answer in rows],
    )


TRAIN = [(f"Compute {number} plus {number}.", str(2 * number)) for number in range(1, 41)]
DEEPSCALER = {"path": "deepscaler", "split": "train", "question": "problem", "answer": "answer"}
GSM8K = {
    "path": "gsm8k",
    "name": "main",
    "split": "test",
    "question": "question",
    "answer": "answer",
    "reads": "after ####",
}
MATH500 = {"path": "MATH-500", "split": "test", "question": "problem", "answer": "answer"}
AIME = {"path": "aime_2026", "split": "train", "question": "problem", "answer": "answer"}


@pytest.fixture
def collections(root):
    """The four collections of the study, a few rows each, in the files and columns that the hub
    has; the first as `hf download` leaves it."""
    deepscaler(root, TRAIN)
    (root / "deepscaler" / ".gitattributes").write_text("*.json filter=lfs\n")
    write(
        root / "deepscaler" / ".cache" / "huggingface" / "download" / "train.json",
        [{"not": "data"}],
    )
    gsm8k(
        root,
        [
            ("How many eggs?", "6*2=<<6*2=12>>12\n#### 12"),
            ("How many dollars?", "That is much.\n#### 1,234"),
        ],
    )
    gsm8k(root, [("How many trained eggs?", "#### 3")], split="train")
    write(
        root / "MATH-500" / "test.jsonl",
        [
            {
                "problem": "Convert $(0,3)$ to polar coordinates.",
                "solution": "...",
                "answer": r"\left( 3, \frac{\pi}{2} \right)",
                "subject": "Precalculus",
                "level": 2,
                "unique_id": "test/precalculus/807.json",
            }
        ],
    )
    write(
        root / "aime_2026" / "data" / "train-00000-of-00001.parquet",
        [{"problem_idx": 1, "answer": 277, "problem": "Find the number of paths."}],
    )
    return root


def settings(**changes):
    return CollectionSettings(
        **{
            "seed": 1,
            "train": DEEPSCALER,
            "validation": 5,
            "test": GSM8K,
            "hard": AIME,
            "further": {"math500": MATH500},
            **changes,
        }
    )


def answers(**changes):
    return [problem.answer for problem in problem_sets(settings(**changes))["test"]]


def identities(chosen):
    return [problem.problem_id for problem in chosen]


def some(split, *questions):
    """Problems of these questions; each is its own answer and name."""
    return tuple(Problem(question, split, question, "1", 0, (), "", "") for question in questions)


# --- sets ----------------------------------------------------------------------------------------


def test_the_four_collections_are_read_as_the_hub_has_them(collections):
    sets = problem_sets(settings())
    assert list(sets) == ["train", "validation", "test", "hard", "math500"], (
        "the splits of every study, then the further sets by name"
    )
    assert {split: len(chosen) for split, chosen in sets.items()} == {
        "train": 35,
        "validation": 5,
        "test": 2,
        "hard": 1,
        "math500": 1,
    }, "sizes"
    assert [problem.answer for problem in sets["test"]] == ["12", "1234"], (
        "GSM8K's gold answer stands behind ####"
    )
    assert sets["hard"][0].answer == "277", "AIME's answers are integers in the file and text here"
    assert sets["math500"][0].answer == r"\left( 3, \frac{\pi}{2} \right)", (
        "MATH's answers are LaTeX and stay as they are"
    )
    assert {problem.split for problem in sets["math500"]} == {"math500"}, (
        "each problem knows its split"
    )
    assert {problem.split for problem in sets["validation"]} == {"validation"}, (
        "a problem set aside is no longer a training one"
    )


def test_a_problem_is_named_by_its_question_and_has_no_story(collections):
    problem = problem_sets(settings())["hard"][0]
    assert problem.problem_id == hashlib.sha256(b"Find the number of paths.").hexdigest()[:12], (
        "the name is that of templates.draw_problem"
    )
    assert (problem.steps, problem.chain, problem.person, problem.things) == (0, (), "", ""), (
        "a public problem has neither chain nor story"
    )


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        ("#### 1,234", "1234"),
        ("#### 1,234,567", "1234567"),
        ("####70,000 ", "70000"),
        ("#### -3", "-3"),
        ("#### 2.50", "2.50"),
        ("#### 1,2", "1,2"),
        ("#### 10,00,000", "1000000"),
        ("#### 1,23,456.5", "123456.5"),
        ("#### 12,34", "12,34"),
        ("He ran #### 3 miles\n#### 4", "4"),
    ],
)
def test_the_answer_behind_the_mark_loses_thousands_commas_and_white_space(
    collections, solution, answer
):
    gsm8k(collections, [("How many?", solution)])
    assert answers() == [answer], f"the gold answer of {solution!r}"


def test_validation_is_taken_out_of_training(collections):
    sets = problem_sets(settings())
    train, validation = set(identities(sets["train"])), set(identities(sets["validation"]))
    assert not train & validation, "a validation problem must not be trained on"
    assert {problem.question for split in ("train", "validation") for problem in sets[split]} == {
        question for question, _ in TRAIN
    }, "and none may get lost"


def test_the_order_of_the_rows_does_not_choose_the_validation_problems(collections):
    before = problem_sets(settings())
    deepscaler(collections, random.Random(0).sample(TRAIN, len(TRAIN)))
    _raw_sets.cache_clear()
    after = _problem_sets.__wrapped__(settings().model_dump_json())
    assert identities(after["train"]) != identities(before["train"]), (
        "the rows must have moved for this test to say anything"
    )
    assert after["validation"] == before["validation"], (
        "validation problems are drawn from sorted names"
    )


def test_another_test_set_changes_the_validation_problems_only_where_it_overlaps(collections):
    before = problem_sets(settings())["validation"]
    write(collections / "more" / "test.jsonl", [{"problem": before[1].question, "answer": "1"}])
    after = problem_sets(settings(further={"more": {**MATH500, "path": "more"}}))["validation"]
    assert identities(after)[:4] == identities(before[:1] + before[2:]), (
        "the others are drawn as before, so that studies with more test sets stay comparable"
    )


def test_the_seed_chooses_the_validation_problems(collections):
    drawn = {
        tuple(identities(problem_sets(settings(seed=seed))["validation"])) for seed in range(4)
    }
    assert len(drawn) == 4, "each seed draws other problems"


def test_of_duplicates_within_a_split_the_first_is_kept_and_they_are_counted(collections):
    deepscaler(collections, [*TRAIN, ("Compute  1\n plus 1. ", "3"), ("compute 1 plus 1.", "2")])
    sets = problem_sets(settings())
    trained = [
        problem
        for split in ("train", "validation")
        for problem in sets[split]
        if problem.question.split()[:2] == ["Compute", "1"]
    ]
    assert [problem.answer for problem in trained] == ["2"], (
        "the same words with other white space are the same question, "
        "and the first row's answer stands"
    )
    counts, _ = report(settings())
    row = counts.set_index("split").loc["train"]
    assert (row["read"], row["duplicates"], row["kept"]) == (42, 1, 36), (
        "case makes another question, white space does not"
    )


def test_a_limit_takes_the_first_rows(collections):
    sets = problem_sets(settings(train={**DEEPSCALER, "limit": 9}))
    assert {problem.question for split in ("train", "validation") for problem in sets[split]} == {
        question for question, _ in TRAIN[:9]
    }, "first nine rows"
    assert len(problem_sets(settings(train={**DEEPSCALER, "limit": 999}))["train"]) == 35, (
        "a limit beyond the last row takes all"
    )


def test_settings_with_further_sets_are_read_once(collections, monkeypatch):
    first, reads = problem_sets(settings()), []
    monkeypatch.setattr(datasets, "load_dataset", lambda *given, **how: reads.append(given))
    assert problem_sets(settings()) is first, "equal settings share their problems"
    report(settings())
    assert not reads, "neither the sets nor the report read a collection again"


# --- overlaps ------------------------------------------------------------------------------------


def test_an_overlap_far_from_a_changed_word_is_found_and_kept_from_training(collections):
    changed = PLANTED.replace("many animals are there", "many creatures live there")
    deepscaler(collections, [*TRAIN, (changed, "11")])
    gsm8k(collections, [(PLANTED, "#### 11")])
    sets = problem_sets(settings())
    assert changed not in {
        problem.question for split in ("train", "validation") for problem in sets[split]
    }, "a test problem must not be trained on"
    counts, pairs = report(settings())
    assert pairs.kind.tolist() == ["shared n-gram"], "the report shows what was left out"
    assert (pairs.split[0], pairs.problem_id[0]) == ("test", sets["test"][0].problem_id), (
        "and for which test problem"
    )
    assert counts.set_index("split").overlaps.to_dict() == {
        "train": 1,
        "validation": 0,
        "test": 0,
        "hard": 0,
        "math500": 0,
    }, "test sets stay whole"
    assert overlaps(sets).empty, "nothing overlaps in what is handed out"


def test_twelve_words_in_a_row_are_no_overlap_and_thirteen_are():
    tested = " ".join(WORDS[:30])
    for shared, count in ((12, 0), (13, 1)):
        prompt = " ".join(["other", *WORDS[5 : 5 + shared], "others", *WORDS[40:60]])
        sets = {"train": some("train", prompt), "test": some("test", tested)}
        assert len(overlaps(sets)) == count, f"{shared} words in a row"


def test_case_punctuation_and_white_space_hide_no_equal_text():
    sets = {
        "train": some("train", "What's  $X_1$ + 2?"),
        "validation": some("validation", "what s x 1 2"),
        "hard": some("hard", "WHAT'S X_1, 2"),
    }
    pairs = overlaps(sets)
    assert pairs.kind.tolist() == ["same text"] * 2, (
        "questions shorter than an n-gram are compared as a whole, "
        "in training and validation prompts"
    )
    within = {"train": some("train", "What is x"), "test": some("test", "What is x now")}
    assert overlaps(within).empty, "a short question within another is no overlap"


def test_a_long_equal_text_is_one_pair_called_the_same():
    pairs = overlaps({"train": some("train", PLANTED.upper()), "test": some("test", PLANTED)})
    assert pairs.kind.tolist() == ["same text"], "equal texts share n-grams too, which adds nothing"


@pytest.mark.parametrize(("prompts", "count"), [(10, 10), (11, 0)])
def test_a_phrase_of_more_than_ten_prompts_is_no_overlap(prompts, count):
    phrase = (
        r"can be written as $\frac{m}{n}$, where $m$ and $n$ are relatively prime positive "
        "integers. Find $m+n$."
    )
    trained = some("train", *(f"Sum {number} {phrase}" for number in range(prompts)))
    sets = {"train": trained, "test": some("test", f"The area {phrase}")}
    assert len(overlaps(sets)) == count, (
        f"a phrase in {prompts} training prompts, where up to ten tell of an overlap"
    )


@given(
    st.lists(st.text("ab", max_size=9), max_size=6),
    st.lists(st.text("ab", max_size=9), max_size=6),
    st.integers(1, 4),
    st.integers(1, 3),
)
def test_overlaps_are_those_that_a_search_of_every_window_finds(trained, tested, n, common):
    trained, tested = (
        [" ".join(letters) for letters in dict.fromkeys(texts)] for texts in (trained, tested)
    )
    windows = {
        text: [
            f" {text} "[start : start + 2 * n + 1] for start in range(0, len(text) - 2 * n + 2, 2)
        ]
        for text in tested
    }
    expected = set()
    for test in tested:
        for train in trained:
            shared = [
                window
                for window in windows[test]
                if window in f" {train} "
                and sum(window in f" {other} " for other in trained) <= common
            ]
            if train == test or shared:
                expected.add((test, train, "same text" if train == test else "shared n-gram"))
    pairs = overlaps(
        {"train": some("train", *trained), "test": some("test", *tested)}, n=n, common=common
    )
    assert (
        set(pairs[["problem_id", "train_id", "kind"]].itertuples(index=False, name=None))
        == expected
    ), "text search and n-grams agree on every pair"
    assert not pairs.duplicated(["problem_id", "train_id"]).any(), "one row per pair"


# --- report --------------------------------------------------------------------------------------


def test_what_is_read_is_kept_or_accounted_for(collections):
    deepscaler(collections, [*TRAIN, TRAIN[0], (PLANTED, "11"), ("Prove it.", None)])
    gsm8k(collections, [(PLANTED, "#### 11"), (PLANTED, "#### 11"), ("How many eggs?", "#### 12")])
    with pytest.warns(UserWarning, match="1 of 43 rows are left out"):
        counts, _ = report(settings())
    assert counts.columns.tolist() == [
        "split",
        "read",
        "incomplete",
        "duplicates",
        "overlaps",
        "kept",
        "ungradable",
    ], "one column per fate"
    total = counts.drop(columns="split").sum()
    assert (
        total["read"] - total["incomplete"] - total["duplicates"] - total["overlaps"]
        == total["kept"]
    ), "no row may vanish without a reason"
    assert counts.incomplete.tolist() == [1, 0, 0, 0, 0], "a training row without an answer"
    assert counts.set_index("split").loc["test", ["read", "duplicates", "kept"]].tolist() == [
        3,
        1,
        2,
    ], "test sets lose duplicates only"


def test_answers_that_no_completion_can_match_are_named(collections):
    deepscaler(
        collections,
        [
            *TRAIN,
            ("Which set?", r"\left\{1"),
            ("Which share?", r"80\%"),
            ("Which half?", r"\frac{1}{2}"),
        ],
    )
    sets = problem_sets(settings())
    problems = ungradable(sets)
    assert problems.answer.tolist() == [r"\left\{1"], (
        "an unclosed brace can't be boxed; LaTeX that math-verify reads can"
    )
    counts, _ = report(settings())
    assert counts.ungradable.sum() == 1, "the report counts it"


# --- reading -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "file", ["test-00000-of-00001.parquet", "test.json", "test.jsonl", "test.csv"]
)
def test_each_format_gives_the_same_problems(collections, file):
    write(
        collections / "copy" / file,
        [
            {"question": "How many eggs?", "answer": "#### 12"},
            {"question": "How many dollars?", "answer": "#### 1,234"},
        ],
    )
    assert answers(test={**GSM8K, "path": "copy", "name": None}) == ["12", "1234"], (
        f"read from {file}"
    )


def test_a_folder_may_be_absolute(collections, tmp_path):
    write(tmp_path / "elsewhere" / "test.jsonl", [{"question": "How many?", "answer": "#### 5"}])
    assert answers(test={**GSM8K, "path": str(tmp_path / "elsewhere"), "name": None}) == ["5"], (
        "a copy may lie outside of the repository"
    )


@pytest.mark.parametrize("has_card", [True, False])
def test_a_configuration_is_read_with_the_card_of_the_hub_and_without(collections, has_card):
    for split, solution in (("train", "#### 8"), ("test", "#### 9")):
        gsm8k(collections, [("How many? Let us ask.", solution)], split, "socratic")
    if has_card:
        (collections / "gsm8k" / "README.md").write_text(CARD)
    assert answers(test={**GSM8K, "name": "socratic"}) == ["9"], "the configuration's own rows"
    assert answers() == ["12", "1234"], "and those of the other one"
    assert answers(test={**GSM8K, "split": "train"}) == ["3"], "the split's own rows"


def test_a_missing_column_is_named_with_those_that_exist(collections):
    with pytest.raises(
        ValueError,
        match=r"MATH-500.*no column 'question', choose among problem, solution, answer, "
        "subject, level, unique_id",
    ):
        problem_sets(settings(further={"math500": {**MATH500, "question": "question"}}))


def test_a_missing_split_is_named_with_those_that_exist(collections):
    with pytest.raises(ValueError, match=r"MATH-500, split 'train'.*'test'"):
        problem_sets(settings(further={"math500": {**MATH500, "split": "train"}}))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (("How much?", ""), "no answer behind ####"),
        (("How much?", "12"), "no answer behind ####"),
        (("How much?", "12 ####"), "no answer behind ####"),
        (("How much?", None), "the answer is missing"),
        ((" ", "#### 1"), "the question is missing"),
        ((None, "#### 1"), "the question is missing"),
    ],
)
def test_a_row_without_question_or_answer_is_left_out_and_named(collections, row, reason):
    gsm8k(collections, [("How many?", "#### 1"), row, ("How far?", "#### 2"), row])
    with pytest.warns(
        UserWarning,
        match=rf"gsm8k, split 'test': 2 of 4 rows are left out, row 1 \(the first is 0\): {reason}",
    ):
        assert answers() == ["1", "2"], "the others are read"
    counts, _ = report(settings())
    assert counts.set_index("split").loc["test", ["read", "incomplete", "kept"]].tolist() == [
        4,
        2,
        2,
    ], "what is left out is counted"


def test_a_column_of_which_nothing_can_be_read_is_refused_by_its_first_row(collections):
    gsm8k(collections, [("How many?", "12"), ("How much?", "13")])
    with pytest.raises(
        ValueError,
        match=r"gsm8k, split 'test': no row can be read, row 0 .*no answer behind ####; "
        "column 'question' 'How many.', column 'answer' '12'",
    ):
        problem_sets(settings())


def asked(text, role="user"):
    return [{"role": role, "content": text}]


@pytest.mark.parametrize(
    ("value", "gold"),
    [
        (25, "25"),
        (-3, "-3"),
        (25.0, "25"),
        (0.5, "0.5"),
        (1e-7, "0.0000001"),
        (1e16, "10000000000000000"),
        (True, "True"),
        (["\\frac{1}{2}"], "\\frac{1}{2}"),
        ([7], "7"),
        (asked("so 4", "assistant"), "so 4"),
    ],
    ids=str,
)
@pytest.mark.parametrize("ending", ["json", "parquet"])
def test_answers_that_are_numbers_a_list_of_one_or_a_chat_are_read_as_text(
    collections, value, gold, ending
):
    write(collections / "copy" / f"test.{ending}", [{"problem": "How many?", "answer": value}])
    assert answers(test={**MATH500, "path": "copy"}) == [gold], "the answer as one would write it"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (["1", "2"], "the answer is a list of 2, which does not say whether one is enough"),
        ({"value": "1"}, "the answer is no text but the record"),
        (asked("1"), "the answer is a chat of messages by user"),
        ([], "the answer is no text but the list"),
        (float("nan"), "the answer is missing"),
    ],
    ids=str,
)
def test_answers_that_can_be_read_in_two_ways_are_left_out(collections, value, reason):
    rows = [{"problem": "How many?", "answer": value}]
    write(collections / "copy" / "test.parquet", rows)
    with pytest.raises(ValueError, match=f"copy, split 'test': no row .* row 0 .*: {reason}"):
        problem_sets(settings(test={**MATH500, "path": "copy"}))


def test_missing_integers_make_no_floats_of_the_others(collections):
    rows = [{"problem": f"{letter}?", "answer": value} for letter, value in (("A", 7), ("B", None))]
    write(collections / "copy" / "test.csv", rows)
    assert "7.0" in (collections / "copy" / "test.csv").read_text(), "as pandas writes them"
    with pytest.warns(UserWarning, match=r"1 of 2 rows are left out, row 1 .*answer is missing"):
        assert answers(test={**MATH500, "path": "copy"}) == ["7"], "an integer as one writes it"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (asked("Sum up.", "system") + asked("How many?"), "a chat of messages by system, user"),
        (5, "no text but the number 5"),
        ({"text": "How many?"}, "no text but the record"),
        ([{"role": "user", "content": asked("How many?")}], "a message with a content that is no"),
    ],
    ids=str,
)
def test_a_question_is_a_text_or_a_chat_of_one_message(collections, value, reason):
    write(collections / "good" / "test.json", [{"problem": asked("How many?"), "answer": "1"}])
    (problem,) = problem_sets(settings(test={**MATH500, "path": "good"}))["test"]
    assert problem.question == "How many?", "the user's only message is the question"
    write(collections / "bad" / "test.json", [{"problem": value, "answer": "1"}])
    with pytest.raises(ValueError, match=f"bad, split 'test'.* row 0 .*the question is {reason}"):
        problem_sets(settings(test={**MATH500, "path": "bad"}))


@pytest.mark.parametrize("name", [None, "main"])
def test_a_folder_of_save_to_disk_is_read(collections, name):
    rows = [{"question": "How many?", "answer": "#### 5"}]
    saved = collections / "saved" / (name or "")
    datasets.Dataset.from_list(rows).save_to_disk(saved)
    assert answers(test={**GSM8K, "path": "saved", "name": name}) == ["5"], "a single data set"
    datasets.DatasetDict({"test": datasets.Dataset.from_list(rows)}).save_to_disk(
        collections / "all" / (name or "")
    )
    assert answers(test={**GSM8K, "path": "all", "name": name}) == ["5"], "one of several splits"


def test_a_folder_of_save_to_disk_that_holds_another_split_is_refused(collections):
    rows = [{"question": "How many?", "answer": "#### 5"}]
    datasets.Dataset.from_list(rows, split="train").save_to_disk(collections / "saved")
    with pytest.raises(
        ValueError, match="saved, split 'test': the folder was saved of the split 'train' alone"
    ):
        problem_sets(settings(test={**GSM8K, "path": "saved", "name": None}))


def test_a_file_that_cannot_be_read_is_refused_by_the_name_of_its_data_set(collections):
    (collections / "MATH-500" / "test.jsonl").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha256:35dc\nsize 446564\n"
    )
    with pytest.raises(ValueError, match="MATH-500, split 'test'"):
        problem_sets(settings())


def test_without_network_the_way_out_is_said_at_once(collections, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(
        FileNotFoundError,
        match=r"no data set 'openai/gsm8k'.*hf download --repo-type dataset openai/gsm8k "
        "--local-dir FOLDER",
    ):
        problem_sets(settings(test={**GSM8K, "path": "openai/gsm8k"}))


def test_a_name_that_the_hub_does_not_know_is_refused_the_same_way(collections, monkeypatch):
    def refuse(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError(
            "Dataset 'openai/gsm9k' doesn't exist on the Hub or cannot be accessed."
        )

    monkeypatch.setattr(datasets, "load_dataset", refuse)
    with pytest.raises(
        FileNotFoundError,
        match=r"no data set 'openai/gsm9k'.*doesn't exist on the Hub.*hf download",
    ):
        _load(Source(**{**GSM8K, "path": "openai/gsm9k"}))


def test_a_folder_without_data_is_refused_the_same_way(collections):
    (collections / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no data set 'empty'"):
        problem_sets(settings(test={**GSM8K, "path": "empty"}))


def test_a_further_set_may_not_take_the_name_of_a_split(collections):
    with pytest.raises(ValueError, match=r"problems\.further names a set 'hard'"):
        problem_sets(settings(further={"hard": MATH500}))


def test_validation_must_leave_something_to_train_on(collections):
    with pytest.raises(
        ValueError, match="deepscaler: 40 problems are left to train on, too few to set 40 aside"
    ):
        problem_sets(settings(validation=40))
