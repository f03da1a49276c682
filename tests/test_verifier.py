"""The process that reads answers: the same judgement as math-verify's, and no answer that hangs,
fills the memory or ends the study."""

import subprocess
import sys
import time

import pytest

from helpers.data import grading, verifier

HOSTILE = [
    "9^{9^{9^{9}}}",
    "10^{10^{10}}",
    "(10^{9})!",
    "\\sum_{n=1}^{10^{12}} n^n",
    "{" * 400 + "}" * 400,
    "\\sqrt{" * 100 + "1" + "}" * 100,
    "__import__('os').system('touch pwned')",
    "\\gcd(7^{100000007}, 12)",
    "1/0",
    "\\frac{1}{0}",
    "\\input{/etc/passwd}",
    "\0",
    "１２",
]


def spins(written, answer):
    return sum(range(10**12))


def fills_the_memory(written, answer):
    return len(bytearray(2 * verifier.MEMORY))


@pytest.mark.parametrize(
    ("written", "answer"),
    [("12", "12"), ("12", "21"), ("-3", "3"), ("-3", "-3"), ("0", "-0"), ("1" * 15, "1" * 15)],
)
def test_integers_are_compared_as_math_verify_would(written, answer):
    elsewhere = verifier._pool().schedule(verifier._by_math_verify, args=[written, answer]).result()
    assert verifier.compare(written, answer) == elsewhere, (
        "the short way round is a short cut, not another rule"
    )


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("12.0", (True, True)),
        ("\\frac{24}{2}", (True, True)),
        ("12 apples", (True, True)),
        ("13", (True, False)),
        ("", (False, False)),
    ],
)
def test_what_is_no_integer_is_read_as_mathematics(written, expected):
    assert verifier.compare(written, "12") == expected


@pytest.mark.parametrize("work", [spins, fills_the_memory])
def test_an_answer_that_would_hang_or_fill_the_memory_is_unreadable_and_the_next_one_is_read(
    monkeypatch, work
):
    with monkeypatch.context() as patched:
        patched.setattr(verifier, "_by_math_verify", work)
        patched.setattr(verifier, "SECONDS", 1)
        started = time.monotonic()
        assert verifier.compare(f"{work.__name__}^2", "12") == (False, False)
        assert time.monotonic() - started < 10, "it is stopped at its limit"
    assert verifier.compare(f"{work.__name__ == 'spins':d} + 11", "12")[0], (
        "another process has taken its place"
    )


def test_a_process_that_nobody_waits_for_ends_by_itself():
    code = (
        "import math_verify; from helpers.data import verifier; "
        "math_verify.parse = lambda *_: sum(range(10**12)); "
        "verifier.SECONDS = 1; verifier._by_math_verify('a', 'b')"
    )
    started = time.monotonic()
    process = subprocess.run([sys.executable, "-c", code], capture_output=True, timeout=60)
    assert process.returncode < 0, "the kernel ends it when its second of computing is over"
    assert time.monotonic() - started < 30


def test_what_is_longer_than_any_answer_is_not_read_at_all():
    assert verifier.compare("1+" * verifier.LONGEST + "1", "12") == (False, False)


@pytest.mark.slow
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_boxes_are_graded_in_bounded_time_and_do_nothing(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    graded = grading.grade(f"So the answer is \\boxed{{{text}}}.", "7")
    assert not graded.correct, "none of these is seven"
    assert time.monotonic() - started < 3 * verifier.SECONDS, "bounded"
    assert not list(tmp_path.iterdir()), "nothing was executed"
