"""Rollouts that lie in a file: which questions it answers, with what, and which answers were cut.

After `servers`, whose kind of completion it gives, and before `rollouts`, which reads the files of
the profiles whose rollouts exist already. Writes nothing.
"""

import io
import itertools
import json
import warnings
from collections import Counter, defaultdict
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from helpers.data import texts
from helpers.data.servers import Completion, about_cut

_COLUMNS = ("question", "completion")
_MARKS = ("truncated", "finish_reason")  # columns that say whether a completion was cut


def read(file: Path) -> dict[str, list[Completion]]:
    """The completions of each question in the order of the file, {question: completions}; the white
    space in a question is single spaces.

    A row has a `question` and a `completion`: each a text or a chat of a single message, and the
    completion also a list of several. A `finish_reason` is read as a server's; where there is none,
    a completion that is `truncated` has "length" and any other "stop", also where the row has
    neither. Warns of those cut for another reason than "length".

    Raises ValueError with the file and the row, the first being 0, for what can't be read so, and
    where the two contradict each other or are null.
    """
    rows, columns = _rows(file)
    if missing := [column for column in _COLUMNS if column not in columns]:
        raise ValueError(
            f"{file}: rollouts need a column {missing[0]!r}; "
            f"it has {', '.join(columns) or 'no rows'}"
        )
    by_question: dict[str, list[Completion]] = defaultdict(list)
    reasons: Counter[str] = Counter()
    for number, row in enumerate(rows):
        try:
            question = " ".join(_text(row.get("question"), "question", "user").split())
            completions = _completions(row)
        except ValueError as fault:
            raise ValueError(f"{file}, row {number} (the first is 0): {fault}") from None
        by_question[question] += completions
        reasons.update(one.finish_reason for one in completions if one.is_cut)
    if said := about_cut(reasons):
        warnings.warn(f"{file}: {said}", stacklevel=4)
    return by_question


def _rows(file: Path) -> tuple[list[dict[str, Any]], list[str]]:
    """The rows of a file and all its columns; of a Parquet file only those that are read here."""
    kind = "Parquet" if file.suffix == ".parquet" else "JSON lines"
    try:
        if kind == "Parquet":
            with pq.ParquetFile(file) as table:
                columns = table.schema_arrow.names
                read = [column for column in _COLUMNS + _MARKS if column in columns]
                return table.read(read).to_pylist(), columns
        rows = _json_rows(file)
    except ValueError as error:
        raise ValueError(f"{file} can't be read as {kind}: {error}") from error
    return rows, list(dict.fromkeys(itertools.chain.from_iterable(rows)))


def _json_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, or of one that is a single JSON array of rows."""
    # Arrow's stream unpacks what is compressed; Windows writes a mark before the first letter.
    with io.TextIOWrapper(pa.input_stream(file), encoding="utf-8-sig") as stream:
        lines = [line for line in stream if line.strip()]
    rows: list[dict[str, Any]] = []
    if lines and lines[0].lstrip().startswith("["):
        rows = json.loads("".join(lines))
    else:
        for number, line in enumerate(lines):
            try:
                rows.append(json.loads(line))
            except ValueError as error:
                raise ValueError(f"row {number} (the first is 0): {error}") from error
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise ValueError(f"row {number} (the first is 0) is no record but {str(row)[:60]}")
    return rows


def _text(value: Any, column: str, role: str) -> str:
    try:
        return texts.text_in(value, role)
    except ValueError as fault:
        raise ValueError(f"its {column} {fault}") from None


def _completions(row: dict[str, Any]) -> list[Completion]:
    """The completions in a row, one or several."""
    written = row.get("completion")
    said = {mark: row[mark] for mark in _MARKS if mark in row}
    if not isinstance(written, list) or texts.is_chat(written):
        return [_completion(written, said)]
    if not written:
        raise ValueError("its completion is an empty list")
    for mark, values in said.items():
        if not isinstance(values, list) or len(values) != len(written):
            raise ValueError(
                f"its completion is a list of {len(written)}, so its {mark} has to be a list of as "
                f"many values, not {values!r}"
            )
    return [
        _completion(one, {mark: values[index] for mark, values in said.items()})
        for index, one in enumerate(written)
    ]


def _completion(written: Any, said: dict[str, Any]) -> Completion:
    """A completion with the reason of its end, from what the columns of `_MARKS` say of it; null
    says nothing."""
    completion = Completion(_text(written, "completion", "assistant"), "stop", None, None)
    if not said:
        return completion
    truncated, reason = said.get("truncated"), said.get("finish_reason")
    if truncated is None and reason is None:
        raise ValueError(
            f"null as {' and '.join(said)} does not say whether the completion was cut: write true "
            "or false as truncated"
        )
    if truncated not in (None, True, False):
        raise ValueError(f"its truncated is {truncated!r}: write true or false")
    if not isinstance(reason, str | None):
        raise ValueError(f"its finish_reason is no text but {reason!r}")
    if reason is None:
        return replace(completion, finish_reason="length" if truncated else "stop")
    completion = replace(completion, finish_reason=reason)
    if truncated is not None and completion.is_cut != truncated:
        raise ValueError(
            f"its truncated {truncated!r} and its finish_reason {reason!r} contradict each other: "
            "leave out the column that is wrong"
        )
    return completion
