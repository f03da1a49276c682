"""The process that reads answers: the same judgement as math-verify's, wherever the grading is
called from, and no answer that hangs, fills the memory or ends the study."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

from helpers import store
from helpers.data import grading, reading, verifier

HOSTILE = [
    "9^{9^{9^{9}}}",
    "10^{10^{10}}",
    "(10^{9})!",
    "\\sum_{n=1}^{10^{12}} n^n",
    "{" * 400 + "}" * 400,
    "\\sqrt{" * 100 + "1" + "}" * 100,
    "\\frac{1}{1+" * 60 + "1" + "}" * 60,
    "__import__('os').system('touch pwned')",
    "\\gcd(7^{100000007}, 12)",
    "1/0",
    "\\frac{1}{0}",
    "\\input{/etc/passwd}",
    "\0",
    "\ud800",
    "１２",
]


@pytest.mark.parametrize(
    ("written", "answer"),
    [("12", "12"), ("12", "21"), ("-3", "3"), ("-3", "-3"), ("0", "-0"), ("1" * 15, "1" * 15)],
)
def test_integers_are_compared_as_math_verify_would(written, answer):
    readable, _, equal = verifier._reply(written, answer)
    assert verifier.compare(written, answer) == (readable, equal), (
        "the short way round is a short cut, not another rule"
    )


@pytest.mark.parametrize(
    ("written", "answer", "expected"),
    [
        ("12.0", "12", (True, True)),
        ("\\frac{24}{2}", "12", (True, True)),
        ("12 apples", "12", (True, True)),
        ("13", "12", (True, False)),
        ("", "12", (False, False)),
        ("see above", "12", (False, False)),
        ("???", "12", (False, False)),
        ("\\text{Carla}", "\\text{Evelyn}", (True, False)),
        ("Evelyn", "\\text{evelyn}", (True, True)),
        ("12", "\\text{Evelyn}", (True, False)),
        ("", "\\text{Evelyn}", (False, False)),
        ("???", "???", (True, True)),
        ("\\text{(E)}\\ 13", "13", (True, True)),
        ("\\text{(E)}\\ 13", "(E)", (True, True)),
        ("(D)", "\\text{(E)}\\ 13", (True, False)),
        ("13", "\\text{(E)}\\ 13", (True, True)),
    ],
)
def test_mathematics_is_read_and_words_only_where_the_answer_is_words(written, answer, expected):
    assert verifier.compare(written, answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("42", True),
        ("42.", True),
        ("１２", True),
        ("90°", True),
        ("½", True),
        ("5 (apples)", True),
        ("€42", True),
        ("\\text{(E)}\\ 13", True),
        ("C", True),
        ("\\text{(C)}", True),
        ("A, B and D", True),
        ("The sequence is convergent.", False),
        ("\\text{see figure}", False),
        ("Evelyn", False),
        ("???", False),
        ("\\underline{42}", False),
        ("\\left\\{1", False),
        ("", False),
        ("1+" * verifier.LONGEST + "1", False),
    ],
)
def test_text_that_math_verify_hands_back_is_no_mathematics(answer, expected):
    assert verifier.is_mathematics(answer) == expected


def test_what_is_longer_than_any_answer_is_not_read_at_all():
    assert verifier.compare("1+" * verifier.LONGEST + "1", "12") == (False, False)
    assert verifier.compare("12.0", "1+" * verifier.LONGEST + "1") == (False, False)


# --- limits and failures -------------------------------------------------------------------------


@pytest.fixture
def program(monkeypatch, tmp_path):
    """Puts other code behind `reading.compare` in processes that start from now on."""

    def replace(code, **limits):
        file = tmp_path / "reading.py"
        source = (
            Path(reading.__file__).read_text().replace('if __name__ == "__main__":', "if True:")
        )
        head, tail = source.split("if True:")
        file.write_text(f"{head}\n{code}\n\nif True:{tail}")
        monkeypatch.setattr(verifier.reading, "__file__", str(file))
        for name, value in limits.items():
            monkeypatch.setattr(verifier, name, value)
        monkeypatch.setattr(verifier, "_process", None)

    yield replace
    verifier._end()


def test_an_answer_beyond_its_seconds_is_unreadable_and_the_next_one_is_read(program):
    program(
        "def compare(written, answer):\n"
        "    return (True, True, sum(range(10**12)) > 0 if written == 'long' else True)",
        SECONDS=1,
    )
    assert verifier._reply("long", "12") == (False, False, False), "stopped long before its hours"
    assert verifier._reply("short", "12") == (True, True, True), "another process is in its place"


def test_an_answer_beyond_its_memory_or_nesting_is_unreadable_in_the_same_process(program):
    # The real comparison, with a verify that needs too much of either.
    program(
        "def _too_much(gold, written):\n"
        "    return len(bytearray(2**31)) if gold[0] == 2 else _too_much(gold, written)\n\n"
        "_real = _parse_and_verify\n"
        "_parse_and_verify = lambda: (_real()[0], _too_much if _started else _real()[1])\n"
        "_started = []\n"
        "_limits_of, _limits = _limits, lambda *a: (_started.append(1), _limits_of(*a))[1]",
        MEMORY=2**29,
    )
    assert verifier._reply("x", "2") == (False, False, False), "memory"
    process = verifier._process
    assert verifier._reply("x", "3") == (False, False, False), "nesting"
    assert verifier._process is process, "neither ends the process"


def test_math_verify_does_not_take_a_lack_of_memory_for_unequal():
    from math_verify import grader

    assert reading.compare("\\frac{2}{4}", "\\frac{1}{2}") == (True, True, True)

    for error in (MemoryError, RecursionError):

        def fails(*_, error=error, **__):
            raise error

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(grader, "sympy_expr_eq", fails)
            assert reading.compare("\\frac{2}{4}", "\\frac{1}{2}") == (False, False, False)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(grader, "sympy_expr_eq", lambda *_, **__: 1 / 0)
        assert reading.compare("\\frac{2}{4}", "\\frac{1}{2}") == (True, True, False), (
            "others are unequal"
        )


def test_a_process_killed_from_outside_is_replaced_and_one_that_keeps_dying_is_an_error(program):
    assert verifier.compare("0.50", "\\frac{1}{2}") == (True, True)
    os.kill(verifier._process.process.pid, signal.SIGKILL)
    assert verifier.compare("0.500", "\\frac{1}{2}") == (True, True), "asked again"
    program("def compare(written, answer):\n    return os.abort() if written == 'x' else ()")
    with pytest.raises(RuntimeError, match=r"died twice \(SIGABRT.*'x' with '12'.*no verdict"):
        verifier.compare("x", "12")


def test_a_process_that_does_not_start_is_an_error_with_its_last_words(program):
    program("raise ImportError('no math-verify here')")
    with pytest.raises(RuntimeError, match=r"does not start: .*ImportError: no math-verify here"):
        verifier.compare("x", "12")


def test_an_import_that_takes_long_takes_nothing_from_the_first_answer(program):
    program("time.sleep(3)\n_real_compare = compare", SECONDS=1)
    assert verifier.compare("0.5000", "\\frac{1}{2}") == (True, True)


def test_an_interrupt_while_waiting_leaves_no_reply_behind(program):
    program(
        "def compare(written, answer):\n"
        "    time.sleep(5 if written == 'slow' else 0)\n"
        "    return (True, True, written == 'slow')"
    )
    verifier._reply("quick", "12")
    # A shell takes Python's handler away from what it runs in the background.
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    try:
        with pytest.raises(KeyboardInterrupt):
            verifier._reply("slow", "12")
    finally:
        signal.signal(signal.SIGINT, handler)
    assert verifier._reply("quick", "12") == (True, True, False), "not the reply to the slow one"


def test_a_process_that_nobody_waits_for_ends_by_itself():
    code = (
        "import os, signal\n"
        "from helpers.data import verifier\n"
        "verifier._reply('1', '1')\n"
        "print(verifier._process.process.pid, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    process = Path(f"/proc/{int(told.stdout)}")
    for _ in range(100):
        if not process.exists() or ") Z " in (process / "stat").read_text():
            break
        time.sleep(0.1)
    else:
        pytest.fail("it outlives the one that started it")


@pytest.mark.slow
@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_boxes_are_graded_in_bounded_time_and_do_nothing(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    started = time.monotonic()
    graded = grading.grade(f"So the answer is \\boxed{{{text}}}.", "7")
    assert not graded.correct, "none of these is seven"
    assert time.monotonic() - started < 12 * verifier.SECONDS, "bounded, on a busy machine too"
    assert not list(tmp_path.iterdir()), "nothing was executed"


@pytest.mark.slow
@pytest.mark.parametrize("text", ["9^{9^{9}}", "10^{10^{10}}", "\\sum_{n=1}^{10^{12}} n^n"])
def test_numbers_that_no_machine_can_write_down_are_unreadable(text):
    assert grading.grade(f"\\boxed{{{text}}}", "7").status == "unreadable"


# --- where the grading is called from ------------------------------------------------------------

SIXTY = 60
HOW_TO_GRADE = """
import json, sys, yaml
from helpers import store
from helpers.data import grading
PAIRS = yaml.safe_load((store.ROOT / "data" / "answers.yaml").read_text())[:60]
def verdict(pair):
    graded = grading.grade(pair["completion"], pair["gold"])
    return [graded.correct, graded.status]
"""
PRINTS = "print(json.dumps([verdict(pair) for pair in PAIRS]))\n"
WORKERS = """
import multiprocessing, os
from concurrent.futures import ThreadPoolExecutor
def in_a_pool(kind):
    with multiprocessing.get_context(kind).Pool(2) as pool:
        return pool.map(verdict, PAIRS)
def in_a_forked_child():
    end, start = os.pipe()
    if os.fork() == 0:
        os.write(start, json.dumps([verdict(pair) for pair in PAIRS]).encode())
        os._exit(0)
    os.close(start)
    return json.loads(open(end).read())
if __name__ == "__main__":
    print(json.dumps(in_a_pool("fork")))
    with ThreadPoolExecutor(8) as threads:
        print(json.dumps(list(threads.map(verdict, PAIRS))))
    grading.verifier.compare.cache_clear()
    print(json.dumps(in_a_pool("fork")))
    print(json.dumps(in_a_pool("spawn")))
    print(json.dumps(in_a_forked_child()))
    grading.verifier.compare.cache_clear()
    print(json.dumps([verdict(pair) for pair in PAIRS]))
"""


@pytest.fixture(scope="module")
def sixty():
    """Sixty verdicts, as this process gives them."""
    pairs = yaml.safe_load((store.ROOT / "data" / "answers.yaml").read_text())[:SIXTY]
    graded = [grading.grade(pair["completion"], pair["gold"]) for pair in pairs]
    agrees = sum(one.correct == pair["right"] for one, pair in zip(graded, pairs, strict=True))
    assert agrees >= 54, "the verdicts that the others must give again are good ones"
    return [[one.correct, one.status] for one in graded]


def _run(arguments, folder, given=None):
    told = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        input=given,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert told.returncode == 0, told.stderr[-2000:]
    return [json.loads(line) for line in told.stdout.splitlines() if line.startswith("[[")]


@pytest.mark.parametrize("how", ["a script", "a guarded script", "standard input", "python -c"])
def test_sixty_answers_get_the_same_verdicts_from(how, tmp_path, sixty):
    once = f'{HOW_TO_GRADE}open("runs.txt", "a").write("once ")\n{PRINTS}'
    script = tmp_path / "collections.py"  # the name of a module of Python's own
    if how == "a guarded script":
        # With all that the trainer imports, which maps more memory than an answer may take.
        guarded = PRINTS.replace("print", 'if __name__ == "__main__":\n    print')
        script = tmp_path / "script.py"
        script.write_text(f"from helpers.training import trainer\n{HOW_TO_GRADE}{guarded}")
        assert _run([script.name], tmp_path) == [sixty]
        return
    if how == "a script":
        script = tmp_path / "script.py"
        script.write_text(once)
        given, arguments = None, [script.name]
    elif how == "standard input":
        given, arguments = once, ["-"]
    else:
        given, arguments = None, ["-c", once]
    assert _run(arguments, tmp_path, given) == [sixty]
    assert (tmp_path / "runs.txt").read_text() == "once ", "the script's own work is done once"


def test_sixty_answers_get_the_same_verdicts_from_threads_forks_and_workers_of_pools(
    tmp_path, sixty
):
    (tmp_path / "script.py").write_text(HOW_TO_GRADE + WORKERS)
    assert _run(["script.py"], tmp_path) == 6 * [sixty]


@pytest.mark.slow
def test_sixty_answers_get_the_same_verdicts_from_a_notebook_and_workers_of_datasets(
    tmp_path, sixty
):
    import nbformat
    from nbclient import NotebookClient

    maps = (
        "import datasets\n"
        "mapped = datasets.Dataset.from_list(PAIRS).map(\n"
        "    lambda pair: {'verdict': json.dumps(verdict(pair))}, num_proc=2)\n"
        "print([json.loads(one) for one in mapped['verdict']] == "
        "[verdict(pair) for pair in PAIRS])"
    )
    cells = [nbformat.v4.new_code_cell(code) for code in (HOW_TO_GRADE + PRINTS, maps)]
    notebook = nbformat.v4.new_notebook(cells=cells)
    NotebookClient(notebook, kernel_name="python3", timeout=300).execute(cwd=str(tmp_path))
    printed = [
        "".join(one.get("text", "") for one in cell.outputs if one.get("name") == "stdout")
        for cell in notebook.cells
    ]
    assert json.loads(printed[0]) == sixty
    assert printed[1].strip().endswith("True"), "so do the workers of datasets"
