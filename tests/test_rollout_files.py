"""Files of rollouts with planted rows: what is read of each shape, and what is refused by its
row."""

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.data import rollout_files


def said(text, role="assistant", **fields):
    """A chat of one message."""
    return [{"role": role, "content": text, **fields}]


def write(file, rows):
    """Rows in the format of the file's name."""
    if file.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), file)
    elif file.suffix == ".json":
        file.write_text(json.dumps(rows, indent=2))
    else:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def read(file):
    """{question: [(text, whether it was cut)]}"""
    return {
        question: [(one.text, one.is_cut) for one in completions]
        for question, completions in rollout_files.read(file).items()
    }


ROWS = [
    {"question": "How  many\n?", "completion": "so 2", "model": "a"},
    {"question": "How far?", "completion": "3", "model": "a"},
    {"question": " How many ?", "completion": "", "model": "b"},
]
READ = {"How many ?": [("so 2", False), ("", False)], "How far?": [("3", False)]}


@pytest.mark.parametrize("name", ["given.jsonl", "given.json", "given.parquet", "given"])
def test_each_format_gives_the_same_completions_by_question_white_space_apart(tmp_path, name):
    assert read(write(tmp_path / name, ROWS)) == READ, f"read from {name}"


def test_lines_may_be_blank_compressed_or_begin_with_a_mark_of_their_encoding(tmp_path):
    text = "\ufeff\n" + "\n\n".join(json.dumps(row) for row in ROWS)
    (tmp_path / "given.jsonl").write_text(text, encoding="utf-8")
    (tmp_path / "given.jsonl.gz").write_bytes(gzip.compress(text.encode()))
    assert read(tmp_path / "given.jsonl") == read(tmp_path / "given.jsonl.gz") == READ


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_chats_of_one_message_are_read_as_their_texts(tmp_path, ending):
    rows = [
        {"question": said("How many?", "user"), "completion": said("so 2", refusal=None)},
        {"question": said("How far?", "user"), "completion": said("3", refusal=None)},
    ]
    assert read(write(tmp_path / f"given.{ending}", rows)) == {
        "How many?": [("so 2", False)],
        "How far?": [("3", False)],
    }


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_list_of_completions_is_as_many_rollouts(tmp_path, ending):
    rows = [
        {
            "question": "How many?",
            "completion": ["so 2", "so we add"],
            "truncated": [False, True],
            "finish_reason": ["stop", "length"],
        },
        {
            "question": "How many?",
            "completion": ["3"],
            "truncated": [None],
            "finish_reason": ["length"],
        },
    ]
    assert read(write(tmp_path / f"given.{ending}", rows)) == {
        "How many?": [("so 2", False), ("so we add", True), ("3", True)]
    }, "each with its own word on its end"


def test_a_list_of_chats_is_as_many_rollouts(tmp_path):
    row = {"question": "How many?", "completion": [said("so 2"), said("so 3")]}
    assert read(write(tmp_path / "given.jsonl", [row])) == {
        "How many?": [("so 2", False), ("so 3", False)]
    }


@pytest.mark.parametrize(
    ("marks", "is_cut"),
    [
        ({"truncated": True}, True),
        ({"truncated": False}, False),
        ({"truncated": 1}, True),
        ({"truncated": 0.0}, False),
        ({"finish_reason": "stop"}, False),
        ({"finish_reason": "STOP"}, False),
        ({"finish_reason": "end_turn"}, False),
        ({"finish_reason": "length"}, True),
        ({"truncated": True, "finish_reason": "length"}, True),
        ({"truncated": False, "finish_reason": "stop"}, False),
        ({"truncated": False, "finish_reason": None}, False),
        ({"truncated": None, "finish_reason": "length"}, True),
        ({}, False),
    ],
    ids=str,
)
def test_what_a_row_says_of_its_end_is_read(tmp_path, marks, is_cut):
    others = [{**ROWS[1], "truncated": False}]
    file = write(tmp_path / "given.jsonl", [{**ROWS[0], **marks}, *others])
    assert read(file) == {"How many ?": [("so 2", is_cut)], "How far?": [("3", False)]}


@pytest.mark.parametrize("reason", ["content_filter", "insufficient_system_resource", ""])
def test_an_end_for_any_other_reason_is_cut_and_told(tmp_path, reason):
    rows = [{**ROWS[0], "finish_reason": reason}] * 2 + [{**ROWS[0], "finish_reason": "length"}]
    with pytest.warns(
        UserWarning, match=f"given.jsonl: 2 completions count as cut .*clean stop: 2 x '{reason}'"
    ):
        completions = read(write(tmp_path / "given.jsonl", rows))
    assert completions == {"How many ?": [("so 2", True)] * 3}, "not the end of the answer"


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"completion": None}, "its completion is missing"),
        ({"question": None}, "its question is missing"),
        ({"completion": 42}, "its completion is no text but the number 42"),
        ({"completion": float("nan")}, "its completion is no text but the number nan"),
        ({"completion": {"text": "so 2"}}, "its completion is no text but the record {'text'"),
        ({"completion": []}, "its completion is an empty list"),
        ({"completion": ["so 2", None]}, "its completion is missing"),
        ({"completion": [["so 2"], ["so 3"]]}, "its completion is no text but the list"),
        ({"completion": said("so 2", "user")}, "its completion is a chat of messages by user: "),
        (
            {"completion": said("so 2", reasoning_content="well")},
            "its completion is a message with reasoning_content that is no text",
        ),
        ({"completion": said(None)}, "its completion is a message with a content that is no text"),
        ({"question": 5}, "its question is no text but the number 5"),
        ({"question": ["How many?"]}, "its question is no text but the list"),
        (
            {"question": said("Be brief.", "system") + said("How many?", "user")},
            "its question is a chat of messages by system, user: only one of a single message by "
            "the user can be read",
        ),
        ({"truncated": None}, "null as truncated does not say whether the completion was cut"),
        (
            {"truncated": None, "finish_reason": None},
            "null as truncated and finish_reason does not say",
        ),
        ({"truncated": "no"}, "its truncated is 'no': write true or false"),
        ({"truncated": [True]}, r"its truncated is \[True\]: write true or false"),
        ({"finish_reason": {"type": "stop"}}, "its finish_reason is no text but {'type': 'stop'}"),
        (
            {"truncated": False, "finish_reason": "length"},
            "its truncated False and its finish_reason 'length' contradict each other",
        ),
        (
            {"truncated": True, "finish_reason": "stop"},
            "its truncated True and its finish_reason 'stop' contradict each other",
        ),
        (
            {"completion": ["so 2", "so 3"], "truncated": False},
            "its completion is a list of 2, so its truncated has to be a list of as many values, "
            "not False",
        ),
        (
            {"completion": ["so 2", "so 3"], "finish_reason": ["stop"]},
            r"its completion is a list of 2, so its finish_reason has to be .* not \['stop'\]",
        ),
    ],
    ids=str,
)
def test_a_row_that_cannot_be_read_is_refused_by_file_and_number(tmp_path, changes, reason):
    file = write(tmp_path / "given.jsonl", [ROWS[1], {**ROWS[0], **changes}])
    with pytest.raises(ValueError, match=rf"given.jsonl, row 1 \(the first is 0\): {reason}"):
        rollout_files.read(file)


def test_a_missing_completion_of_a_parquet_file_is_refused_by_its_number(tmp_path):
    file = write(tmp_path / "given.parquet", [ROWS[1], {**ROWS[0], "completion": None}])
    with pytest.raises(ValueError, match=r"given.parquet, row 1 .*: its completion is missing"):
        rollout_files.read(file)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("given.jsonl", "", "given.jsonl: rollouts need a column 'question'; it has no rows"),
        ("given.json", "[]", "given.json: rollouts need a column 'question'; it has no rows"),
        ("given.json", '{"data": []}', "rollouts need a column 'question'; it has data"),
        ("given.jsonl", '{"question": "?"}', "need a column 'completion'; it has question"),
        (
            "given.jsonl",
            '{"question": "?"}\n{"que',
            "can't be read as JSON lines: row 1 .*Untermin",
        ),
        ("given.json", '[{"question": "?"}', "given.json can't be read as JSON lines: Expecting"),
        ("given.json", '["?", "so 2"]', "given.json .*: row 0 .* is no record but ?"),
        ("given.json", '{\n"question": "?"\n}', "given.json can't be read as JSON lines: row 0"),
        ("given.parquet", "question", "given.parquet can't be read as Parquet"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused_by_its_name(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        rollout_files.read(tmp_path / name)


def test_bytes_that_are_no_text_are_refused_by_the_name_of_the_file(tmp_path):
    (tmp_path / "given.jsonl").write_bytes('{"question": "Größe?"}'.encode("latin-1"))
    with pytest.raises(
        ValueError, match=r"given\.jsonl can't be read as JSON lines: 'utf-8' codec"
    ):
        rollout_files.read(tmp_path / "given.jsonl")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"given\.jsonl"):
        rollout_files.read(tmp_path / "given.jsonl")
