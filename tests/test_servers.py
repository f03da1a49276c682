"""Completions from a server: what is asked, stored, asked again and refused, by a small server of
the protocol; once by a real one that is killed."""

import asyncio
import importlib.util
import itertools
import json
import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from helpers import profiles
from helpers.data import problems, rollouts, servers
from helpers.models import loading, sampling
from helpers.profiles import EndpointSettings

KEY = "sk-never-to-be-seen"
HOW = {"samples": 1, "temperature": 0.7, "max_tokens": 20, "seed": 3}


def said(text, finish_reason="stop", **message):
    return {
        "message": {"role": "assistant", "content": text, **message},
        "finish_reason": finish_reason,
    }


def reply(*choices):
    return 200, {
        "choices": [{"index": index, **choice} for index, choice in enumerate(choices)],
        "model": "teacher",
        "object": "chat.completion",
        "id": "1",
        "created": 1,
        "usage": {"prompt_tokens": 10, "completion_tokens": 6 * len(choices), "total_tokens": 0},
    }


def echo(body, number):
    """As many choices as asked for, each with the question and its own seed."""
    return reply(
        *(
            said(f"{body['messages'][-1]['content']}/{body['seed'] + index}")
            for index in range(body.get("n", 1))
        )
    )


def one_choice(body, number):
    return echo({**body, "n": 1}, number)


def one_of_two(body, number):
    return reply(said("whole"), said(None))


def failing(status, words="no"):
    return lambda body, number: (status, {"error": {"message": words}})


def unless_bad(behave):
    """Each question but the question `bad` is answered."""
    return lambda body, number: (
        behave(body, number) if body["messages"][0]["content"] == "bad" else echo(body, number)
    )


class Teacher:
    """A server of the protocol in a thread.

    `behave(body, number)` gives a request's status, reply and headers, or None to hang up on it.
    """

    def __init__(self, behave=echo, pause=0.0):
        self.behave, self.pause, self.port = behave, pause, 0
        self.asked, self.times, self.keys, self.under_way, self.most_under_way = [], [], [], 0, 0
        self.lock = threading.Lock()

    def __enter__(self):
        teacher = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with teacher.lock:
                    teacher.asked.append(body)
                    teacher.times.append(time.monotonic())
                    teacher.keys.append(self.headers["Authorization"])
                    number = len(teacher.asked)
                    teacher.under_way += 1
                    teacher.most_under_way = max(teacher.most_under_way, teacher.under_way)
                time.sleep(teacher.pause)
                behaved = (
                    teacher.behave(body, number)
                    if self.path == "/v1/chat/completions"
                    else (404, "no such page")
                )
                with teacher.lock:
                    teacher.under_way -= 1
                if behaved is None:
                    return
                status, content, *headers = behaved
                text = (
                    content.encode() if isinstance(content, str) else json.dumps(content).encode()
                )
                self.send_response(status)
                kind = "text/html" if isinstance(content, str) else "application/json"
                for name, value in {
                    "Content-Type": kind,
                    "Content-Length": str(len(text)),
                    **dict(*headers),
                }.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self.port = self.server.server_port
        threading.Thread(target=self.server.serve_forever, args=[0.01], daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def endpoint(self, **settings):
        return EndpointSettings(
            **{
                "url": f"http://127.0.0.1:{self.port}/v1",
                "model": "teacher",
                "concurrency": 4,
                "retries": 0,
                "timeout": 5,
                **settings,
            }
        )


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("TEACHER_KEY", KEY)
    return "TEACHER_KEY"


def texts(completions):
    return [[completion.text for completion in answers] for answers in completions]


def questions(number):
    return [f"question {index}" for index in range(number)]


# --- what is asked and what comes back -----------------------------------------------------------


def test_answers_come_in_the_prompts_order_and_questions_are_sent_as_the_users_message(tmp_path):
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "question 9"},
    ]
    with Teacher() as teacher:
        completions = servers.complete(
            teacher.endpoint(), [*questions(5), messages], folder=tmp_path, **HOW
        )
    asked = [text.split("/")[0] for (text,) in texts(completions)]
    assert asked == [*questions(5), "question 9"], "one entry per prompt, in the prompts' order"
    sent = {json.dumps(body["messages"]) for body in teacher.asked}
    assert json.dumps(messages) in sent, "messages are sent as they are"
    assert json.dumps([{"role": "user", "content": "question 0"}]) in sent, (
        "a question is the user's only message"
    )
    assert {(body["model"], body["temperature"], body["max_tokens"]) for body in teacher.asked} == {
        ("teacher", 0.7, 20)
    }, "and so are model and settings"
    assert completions[0][0].finish_reason == "stop", "the server's word"


def test_a_server_that_honours_n_is_asked_once_per_prompt(tmp_path):
    with Teacher() as teacher:
        completions = servers.complete(
            teacher.endpoint(), questions(3), folder=tmp_path, **{**HOW, "samples": 4}
        )
    assert len(teacher.asked) == 3, "the prompt is paid for once"
    assert all(len(set(answers)) == 4 for answers in texts(completions)), "K completions per prompt"
    assert sum(one.prompt_tokens for answers in completions for one in answers) == 30, (
        "10 prompt tokens per request, shared among its choices"
    )
    assert sum(one.completion_tokens for answers in completions for one in answers) == 3 * 4 * 6, (
        "sums are what the server counted"
    )


def test_a_server_that_writes_one_choice_whatever_n_is_asked_for_the_rest_with_other_seeds(
    tmp_path,
):
    with Teacher() as at_once, Teacher(one_choice) as teacher:
        expected = servers.complete(
            at_once.endpoint(), questions(3), folder=tmp_path / "at once", **{**HOW, "samples": 4}
        )
        completions = servers.complete(
            teacher.endpoint(), questions(3), folder=tmp_path / "singly", **{**HOW, "samples": 4}
        )
    assert len(teacher.asked) == 12, "K requests per prompt"
    assert len({body["seed"] for body in teacher.asked}) == 12, (
        "no two requests draw with the same seed"
    )
    assert texts(completions) == texts(expected), (
        "completion i of a prompt has its seed however many come at once, "
        "where choice j adds j, as in vLLM"
    )


def test_a_server_that_refuses_the_field_n_is_asked_with_it_once(tmp_path):
    with Teacher(
        lambda body, number: failing(422)(body, number) if "n" in body else echo(body, number)
    ) as teacher:
        completions = servers.complete(
            teacher.endpoint(concurrency=1), questions(20), folder=tmp_path, **{**HOW, "samples": 4}
        )
    assert [len(set(answers)) for answers in texts(completions)] == [4] * 20, (
        "a refusal is believed only of a request for one completion"
    )
    assert len(teacher.asked) == 1 + 20 * 4, "one request in vain, not one a prompt"


def test_a_prompt_that_is_refused_does_not_end_the_use_of_n(tmp_path):
    with Teacher(unless_bad(failing(400))) as teacher:
        servers.complete(
            teacher.endpoint(concurrency=1),
            ["bad", "a", "b"],
            folder=tmp_path,
            **{**HOW, "samples": 4},
        )
    assert [body.get("n") for body in teacher.asked] == [4, None, 4, 4], (
        "the refused prompt with n and without it, the others at once"
    )


def test_parameters_are_renamed_or_left_out_as_the_profile_says(tmp_path):
    parameters = {"max_tokens": "max_completion_tokens", "seed": None, "n": None}
    with Teacher(lambda body, number: reply(said(f"answer {number}"))) as teacher:
        completions = servers.complete(
            teacher.endpoint(parameters=parameters),
            ["a"],
            folder=tmp_path,
            **{**HOW, "samples": 3},
        )
    assert (
        teacher.asked
        == [
            {
                "model": "teacher",
                "messages": [{"role": "user", "content": "a"}],
                "temperature": 0.7,
                "max_completion_tokens": 20,
            }
        ]
        * 3
    ), "nothing of the protocol's names, and one request for each completion"
    assert texts(completions) == [["answer 1", "answer 2", "answer 3"]], "all three are kept"


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"top_p": "p"}, "'temperature', 'max_tokens', 'seed' or 'n'"),
        ({"seed": "random seed"}, "should match pattern"),
        ({"seed": "messages"}, "two fields are sent as 'messages'"),
        ({"max_tokens": "seed"}, "two fields are sent as 'seed'"),
        ({"max_tokens": "most", "n": "most"}, "two fields are sent as 'most'"),
    ],
)
def test_names_of_parameters_are_checked(parameters, words):
    with pytest.raises(ValueError, match=words):
        Teacher().endpoint(parameters=parameters)


@pytest.mark.parametrize("field", ["reasoning_content", "reasoning"])
@pytest.mark.parametrize(
    ("thought", "content", "finish_reason", "expected"),
    [
        ("2+2 is 4", "It is 4.", "stop", "<think>\n2+2 is 4\n</think>\n\nIt is 4."),
        ("\n2+2 is 4\n", "\n\nIt is 4.", "stop", "<think>\n2+2 is 4\n</think>\n\nIt is 4."),
        ("2+2 is", None, "length", "<think>\n2+2 is"),
        (None, "It is 4.", "stop", "It is 4."),
        ("2+2 is", "", "max_tokens", "<think>\n2+2 is"),
        ("2+2 is 4", "It is", "content_filter", "<think>\n2+2 is 4\n</think>\n\nIt is"),
        ("2+2 is 4", None, "stop", "<think>\n2+2 is 4\n</think>\n\n"),
        (None, "\nIt is", "length", "\nIt is"),
    ],
)
def test_reasoning_and_answer_are_joined_as_the_model_wrote_them(
    field, thought, content, finish_reason, expected, tmp_path
):
    with Teacher(
        lambda body, number: reply(said(content, finish_reason, **{field: thought}))
    ) as teacher:
        completions = servers.complete(teacher.endpoint(), ["2+2?"], folder=tmp_path, **HOW)
    assert completions[0][0].text == expected, (
        "think tags around the reasoning; a thought that was cut stays open"
    )
    assert completions[0][0].finish_reason == finish_reason, (
        "an answer that was cut is stored and says so"
    )


@pytest.mark.parametrize("thinking", ["2+2", [{"type": "text", "text": "2+2"}]])
def test_the_parts_of_a_content_are_joined(thinking, tmp_path):
    parts = [
        {"type": "thinking", "thinking": thinking},
        {"type": "text", "text": "It is "},
        {"type": "text", "text": "4."},
    ]
    with Teacher(lambda body, number: reply(said(parts))) as teacher:
        completions = servers.complete(teacher.endpoint(), ["2+2?"], folder=tmp_path, **HOW)
    assert texts(completions) == [["<think>\n2+2\n</think>\n\nIt is 4."]], (
        "thinking is reasoning, and text is the answer"
    )


@pytest.mark.parametrize(
    ("finish_reason", "is_cut"),
    [
        *((reason, False) for reason in ("stop", "STOP", "eos", "eos_token", "end_turn")),
        *((reason, True) for reason in ("length", "max_tokens", "model_length", "content_filter")),
        ("a reason of its own", True),
        (None, True),
    ],
)
def test_a_text_is_whole_only_if_the_server_says_so(finish_reason, is_cut, tmp_path):
    with Teacher(lambda body, number: reply(said("First we add", finish_reason))) as teacher:
        for _ in range(2):
            completions = servers.complete(teacher.endpoint(), ["2+2?"], folder=tmp_path, **HOW)
    assert [(one.text, one.is_cut) for one in completions[0]] == [("First we add", is_cut)]
    assert len(teacher.asked) == 1, "it is an answer either way, and kept"


def test_equal_prompts_are_asked_once(tmp_path):
    with Teacher() as teacher:
        completions = servers.complete(teacher.endpoint(), ["a", "b", "a"], folder=tmp_path, **HOW)
    assert len(teacher.asked) == 2, "they share their answers"
    assert completions[0] == completions[2] != completions[1], "each of the two has them"


def test_it_runs_inside_a_running_event_loop(tmp_path):
    async def cell(teacher):
        return servers.complete(teacher.endpoint(), questions(2), folder=tmp_path, **HOW)

    with Teacher() as teacher:
        assert len(asyncio.run(cell(teacher))) == 2, "as a cell of a notebook does"


# --- pace ----------------------------------------------------------------------------------------


def test_at_most_concurrency_requests_are_under_way(tmp_path):
    with Teacher(pause=0.05) as teacher:
        servers.complete(teacher.endpoint(concurrency=3), questions(12), folder=tmp_path, **HOW)
    assert teacher.most_under_way == 3, "as many as allowed and no more"


def test_requests_and_their_retries_keep_to_the_rate(tmp_path):
    with Teacher(
        lambda body, number: (
            (500, "", {"retry-after-ms": "1"}) if number == 2 else echo(body, number)
        )
    ) as teacher:
        servers.complete(
            teacher.endpoint(requests_a_minute=600, retries=1), questions(5), folder=tmp_path, **HOW
        )
    assert len(teacher.asked) == 6, "five prompts and one retry"
    assert teacher.times[-1] - teacher.times[0] > 0.45, (
        "600 per minute are one in 0.1 s, retries included"
    )


@pytest.mark.parametrize(
    ("status", "headers", "least"),
    [
        (429, {"Retry-After": "0.6"}, 0.59),
        (429, {"Retry-After": "0"}, 0.3),
        (500, {}, 0.3),
        (503, {}, 0.3),
    ],
)
def test_what_may_pass_is_tried_again_after_a_pause(status, headers, least, tmp_path):
    with Teacher(
        lambda body, number: (
            (status, {"error": "busy"}, headers) if number == 1 else echo(body, number)
        )
    ) as teacher:
        completions = servers.complete(teacher.endpoint(retries=1), ["a"], folder=tmp_path, **HOW)
    assert len(teacher.asked) == 2, "one try and one more"
    assert teacher.times[1] - teacher.times[0] > least, (
        "the server's Retry-After, or the client's own back-off"
    )
    assert completions[0][0].text.startswith("a/"), "the answer of the second try"


@pytest.mark.parametrize("code", [429, "503"])
def test_an_error_inside_a_reply_of_status_200_is_tried_again_as_its_code_is(code, tmp_path):
    error = {"error": {"message": "Rate limit exceeded: free-models-per-min", "code": code}}
    with Teacher(
        lambda body, number: (
            (200, error, {"Retry-After": "0.3"}) if number == 1 else echo(body, number)
        )
    ) as teacher:
        completions = servers.complete(teacher.endpoint(retries=1), ["a"], folder=tmp_path, **HOW)
    assert len(teacher.asked) == 2, "one try and one more"
    assert teacher.times[1] - teacher.times[0] > 0.29, "after the server's pause"
    assert completions[0][0].text.startswith("a/"), "the answer of the second try"


@pytest.mark.parametrize(("code", "kind"), [(429, ConnectionError), (401, ValueError)])
def test_an_error_inside_a_reply_of_status_200_is_shown_in_the_servers_words(code, kind, tmp_path):
    error = {"error": {"message": "not for you today", "code": code}}
    with Teacher(lambda body, number: (200, error, {"retry-after-ms": "1"})) as teacher:
        with pytest.raises(kind, match=f"{code} - not for you today"):
            servers.complete(teacher.endpoint(retries=2), ["a"], folder=tmp_path, **HOW)
        assert len(teacher.asked) == (3 if code == 429 else 1), "tried again where it may pass"


# --- what is stored ------------------------------------------------------------------------------


def test_a_server_that_dies_is_told_and_the_same_call_asks_only_for_what_is_missing(tmp_path):
    teacher = Teacher(lambda body, number: echo(body, number) if number <= 5 else None)
    with (
        teacher,
        pytest.raises(
            ConnectionError,
            match=rf"{teacher.endpoint().url[:16]}.* 5 of 12 prompts are finished and kept in "
            ".*same command goes on",
        ),
    ):
        servers.complete(teacher.endpoint(concurrency=2), questions(12), folder=tmp_path, **HOW)
    first = {body["messages"][0]["content"] for body in teacher.asked[:5]}
    assert len(list(tmp_path.iterdir())) == 5, "finished answers are on disk when the error comes"
    assert len(teacher.asked) <= 7, "nothing new is asked of a server that is down"
    with pytest.raises(ConnectionError, match="5 of 12"):
        servers.complete(teacher.endpoint(), questions(12), folder=tmp_path, **HOW)
    teacher.asked, teacher.behave = [], echo
    with teacher:
        completions = servers.complete(teacher.endpoint(), questions(12), folder=tmp_path, **HOW)
        again = servers.complete(teacher.endpoint(), questions(12), folder=tmp_path, **HOW)
    missing = sorted(set(questions(12)) - first)
    assert sorted(body["messages"][0]["content"] for body in teacher.asked) == missing, (
        "each missing prompt once, a finished call nothing"
    )
    assert [text.split("/")[0] for (text,) in texts(completions)] == questions(12), (
        "old and new answers in order"
    )
    assert again == completions, "what was stored is what was received"


def test_completions_of_an_unfinished_prompt_are_kept_and_a_larger_k_asks_for_the_rest(tmp_path):
    with Teacher(lambda body, number: one_choice(body, number) if number <= 2 else None) as teacher:
        with pytest.raises(ConnectionError, match="0 of 1"):
            servers.complete(teacher.endpoint(), ["a"], folder=tmp_path, **{**HOW, "samples": 3})
        teacher.behave = one_choice
        three = servers.complete(
            teacher.endpoint(), ["a"], folder=tmp_path, **{**HOW, "samples": 3}
        )
        assert len(teacher.asked) == 4, "two answered, one hung up on, one asked again"
        five = servers.complete(teacher.endpoint(), ["a"], folder=tmp_path, **{**HOW, "samples": 5})
        two = servers.complete(teacher.endpoint(), ["a"], folder=tmp_path, **{**HOW, "samples": 2})
    assert len(teacher.asked) == 6, "two more for K = 5, none for K = 2"
    assert (five[0][:3], two[0]) == (three[0], three[0][:2]), "the first ones stay the first ones"
    assert len({one.text for one in five[0]}) == 5, "later requests go on with later seeds"


@pytest.mark.parametrize(
    ("setting", "value"),
    [("temperature", 0.8), ("max_tokens", 21), ("seed", 4), ("model", "other"), ("prompts", ["b"])],
)
def test_answers_to_other_settings_are_never_taken_nor_their_seeds(setting, value, tmp_path):
    with Teacher() as teacher:
        for settings in (
            {"model": "teacher", "prompts": ["a"], **HOW},
            {"model": "teacher", "prompts": ["a"], **HOW, setting: value},
        ):
            servers.complete(
                teacher.endpoint(model=settings.pop("model")), folder=tmp_path, **settings
            )
    assert len(teacher.asked) == 2, "asked anew"
    assert teacher.asked[0]["seed"] != teacher.asked[1]["seed"], "and drawn anew"


def test_answers_of_another_server_are_never_taken_under_the_same_name(tmp_path):
    found = []
    for text in ("a small model", "a large model"):
        with Teacher(lambda body, number, text=text: reply(said(text))) as teacher:
            found += servers.complete(teacher.endpoint(), ["2+2?"], folder=tmp_path, **HOW)
    assert texts(found) == [["a small model"], ["a large model"]], "each was asked"


def test_answers_to_parameters_of_other_names_are_never_taken(tmp_path):
    how = {**HOW, "folder": tmp_path}
    with Teacher() as teacher:
        servers.complete(teacher.endpoint(), ["a"], **how)
        servers.complete(teacher.endpoint(parameters={"temperature": None}), ["a"], **how)
        assert len(teacher.asked) == 2, "drawn at another temperature, so asked anew"
        servers.complete(teacher.endpoint(parameters={"n": None}, concurrency=1), ["a"], **how)
        assert len(teacher.asked) == 2, "however many come at once, they are the same answers"


def test_a_servers_digest_is_of_what_determines_its_answers(monkeypatch):
    tiny = profiles.load("tiny")

    def digest(**settings):
        endpoint = EndpointSettings(**{"url": "http://one:8000/v1", "model": "m", **settings})
        study = tiny.model_copy(
            update={"models": {**tiny.models, "teacher": "endpoint"}, "endpoint": endpoint}
        )
        monkeypatch.setattr(profiles, "load", lambda name: study)
        return loading.model_digest.__wrapped__("tiny", "teacher")

    same = [digest(), digest(url="http://one:8000/v1/"), digest(parameters={"n": None})]
    same.append(digest(concurrency=3, retries=1, timeout=9, price_input=1, key="KEY"))
    assert len(set(same)) == 1, "neither the pace nor the price nor how many come at once"
    others = [
        digest(url="http://one:8001/v1"),
        digest(url="http://two:8000/v1"),
        digest(model="other"),
        digest(parameters={"seed": None}),
        digest(parameters={"max_tokens": "max_completion_tokens"}),
    ]
    assert len({*same, *others}) == 6, "each of these may be another writer"


@pytest.fixture
def interruptible():
    """Python's handler of SIGINT, which a shell takes away from what it runs in the background."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_keeps_what_is_under_way_and_starts_nothing_new(tmp_path):
    def behave(body, number):
        if number == 2:
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
            time.sleep(0.2)
        return echo(body, number)

    with Teacher(behave) as teacher:
        with pytest.raises(KeyboardInterrupt):
            servers.complete(teacher.endpoint(concurrency=1), questions(6), folder=tmp_path, **HOW)
        assert len(teacher.asked) == len(list(tmp_path.iterdir())) == 2, (
            "the second answer was paid for and is stored"
        )
        servers.complete(teacher.endpoint(), questions(6), folder=tmp_path, **HOW)
    assert len(teacher.asked) == 6, "each prompt was asked once"


# --- refusals and mistakes -----------------------------------------------------------------------


NO_ANSWERS = {
    "HTTP 400": ((400, {"error": {"message": "content filter"}}), "400 - content filter"),
    "HTTP 413": ((413, {"error": {"message": "too long"}}), "413 - too long"),
    "HTTP 422": ((422, {"detail": [{"msg": "too deep"}]}), "422 .*too deep"),
    "HTTP 403, moderation": (
        (403, {"error": {"message": "flagged", "code": 403, "metadata": {"reasons": ["war"]}}}),
        "403 - flagged",
    ),
    "no choices": (
        (200, {"choices": [], "prompt_feedback": {"block_reason": "PROHIBITED_CONTENT"}}),
        "no choices: .*PROHIBITED_CONTENT",
    ),
    "choices null": ((200, {"choices": None, "id": "7"}), 'no choices: .*"id": "7"'),
    "an error of code 400": (
        (200, {"error": {"message": "no such field", "code": 400}}),
        "400 - no such field",
    ),
    "an error without code": ((200, {"error": {"message": "sorry"}}), "no choices: .*sorry"),
    "an error that is a text": ((200, {"error": "Unexpected"}), "no choices: .*Unexpected"),
    "message null": (
        reply({"message": None, "finish_reason": "content_filter"}),
        "an empty answer .*content_filter",
    ),
    "filtered": (reply(said("", "content_filter")), "an empty answer .*content_filter"),
    "null": (reply(said(None, reasoning=None)), "an empty answer .*stop"),
    "white space": (reply(said(" \n", reasoning_content="\n")), "an empty answer .*stop"),
    "no parts": (reply(said([])), "an empty answer .*stop"),
    "refusal": (reply(said(None, refusal="I can't help with that.")), "I can't help with that"),
    "system": (
        reply(said("First we", "insufficient_system_resource")),
        "the server gave up .*insufficient_system_resource",
    ),
    "abort": (reply(said("First we", "abort")), "the server gave up .*abort"),
    "error": (reply(said("First we", "error")), "the server gave up .*error"),
    "an error of the choice": (
        reply({**said("First we", "error"), "error": {"code": 502, "message": "provider down"}}),
        "the server gave up .*provider down",
    ),
    "another part": (
        reply(said([{"type": "text", "text": "See"}, {"type": "image_url", "image_url": "x"}])),
        "a part of the kind 'image_url'",
    ),
}


@pytest.mark.parametrize(("behaviour", "words"), NO_ANSWERS.values(), ids=NO_ANSWERS)
def test_a_prompt_without_an_answer_is_said_and_left_out_and_asked_again_by_the_next_call(
    behaviour, words, tmp_path
):
    asked = ["a", "bad", "b"]
    with Teacher(unless_bad(lambda body, number: behaviour)) as teacher:
        first = servers.complete(teacher.endpoint(retries=2), asked, folder=tmp_path, **HOW)
        assert len(teacher.asked) == 3, "each once: it is nothing that passes in seconds"
        assert first[1][0].text == "", "no answer has a text"
        assert re.search(words, first[1][0].finish_reason), "why, in the server's words"
        assert "/v1" not in first[1][0].finish_reason, "the URL is right"
        assert all(one.text for answers in first[::2] for one in answers), "others are answered"
        second = servers.complete(teacher.endpoint(), asked, folder=tmp_path, **HOW)
        assert second == first, "nor does it end a later call"
        teacher.behave = echo
        third = servers.complete(teacher.endpoint(), asked, folder=tmp_path, **HOW)
    again = [body["messages"][0]["content"] for body in teacher.asked[3:]]
    assert again == ["bad", "bad"], "what is no answer is not stored, what is one is"
    assert third[1][0].text.startswith("bad/"), "and it can be answered yet"
    assert third[::2] == first[::2], "the others stay as they were"


def test_the_good_choices_of_a_reply_are_kept_and_only_the_missing_one_is_asked_again(tmp_path):
    def second_is_empty(body, number):
        status, content = echo(body, number)
        content["choices"][1]["message"]["content"] = None
        return status, content

    how = {**HOW, "samples": 4, "folder": tmp_path}
    with Teacher() as whole:
        expected = servers.complete(whole.endpoint(), ["a"], **{**how, "folder": tmp_path / "all"})
    with Teacher(second_is_empty) as teacher:
        first = servers.complete(teacher.endpoint(), ["a"], **how)
        assert [bool(one.text) for one in first[0]] == [True, False, True, True]
        teacher.behave = echo
        second = servers.complete(teacher.endpoint(), ["a"], **how)
    assert [body.get("n") for body in teacher.asked] == [4, None], "one is asked for"
    assert texts(second) == texts(expected), "with the seed that it would have had"


@pytest.mark.parametrize(
    "behave",
    [
        # As Mistral has it: not in the place where OpenAI's words are, and with the seed.
        lambda body, number: (
            422,
            {"detail": [{"msg": "no such field", "input": body["seed"], "loc": ["seed"]}]},
        ),
        lambda body, number: (200, {"choices": [], "id": f"x{number}", "why": "no such field"}),
        failing(400, "no such field"),
    ],
)
def test_a_server_that_answers_nothing_for_one_reason_is_asked_a_few_times_only(behave, tmp_path):
    with (
        Teacher(behave) as teacher,
        pytest.raises(
            ValueError,
            match=r"answers none of the 8 prompts .*no such field.*endpoint\.parameters",
        ) as error,
    ):
        servers.complete(teacher.endpoint(concurrency=16), questions(100), folder=tmp_path, **HOW)
    assert len(teacher.asked) == 8, "the first prompts"
    assert "/v1" not in str(error.value).split(teacher.endpoint().url)[1], "no word of the URL"


def test_prompts_without_an_answer_for_their_own_reasons_end_nothing(tmp_path):
    with (
        Teacher(lambda body, number: (200, {"choices": [], "why": chr(96 + number)})) as teacher,
        pytest.raises(ValueError, match=r"answers none of the 12 prompts .*a"),
    ):
        servers.complete(teacher.endpoint(concurrency=1), questions(12), folder=tmp_path, **HOW)
    assert len(teacher.asked) == 12, "all are asked where the reasons differ"


def test_one_answer_is_enough_for_the_others_to_be_asked(tmp_path):
    def behave(body, number):
        if body["messages"][0]["content"] == "question 3":
            time.sleep(0.2)  # an answer takes its time, a refusal none
            return echo(body, number)
        return failing(400)(body, number)

    with Teacher(behave) as teacher:
        for _ in range(2):
            completions = servers.complete(
                teacher.endpoint(concurrency=12), questions(12), folder=tmp_path, **HOW
            )
    assert [bool(text) for (text,) in texts(completions)] == [index == 3 for index in range(12)]
    assert len(teacher.asked) == 12 + 11, "it takes the parameters, so the prompts are refused"


def test_rollouts_say_why_problems_are_left_out_and_which_texts_were_cut(workplace):
    smoke = profiles.load("smoke")
    chosen = problems.problem_sets(smoke.problems)["train"][:4]
    replies = {
        chosen[0].question: reply(said("whole")),
        chosen[1].question: reply(said("cut", "model_length")),
        chosen[2].question: (200, {"choices": [], "why": "PROHIBITED"}),
        chosen[3].question: reply(said("half", "abort")),
    }
    with Teacher(lambda body, number: replies[body["messages"][0]["content"]]) as teacher:
        study = smoke.model_copy(
            update={
                "models": {**smoke.models, "teacher": "endpoint"},
                "rollouts": smoke.rollouts.model_copy(update={"source": "endpoint", "samples": 1}),
                "endpoint": teacher.endpoint(),
            }
        )
        with (
            pytest.warns(UserWarning, match="1 completions .* count as cut .*1 x 'model_length'"),
            pytest.warns(UserWarning, match="2 of 4 problems .*next call") as warned,
        ):
            table = rollouts.sample_rollouts(study, chosen)
        with pytest.raises(ValueError, match=r"answers none of the 1 prompts .*PROHIBITED"):
            rollouts.sample_rollouts(study, chosen[2:3])
        teacher.behave = one_of_two
        with pytest.raises(ValueError, match=r"1 of 1 problems are left out: teacher .*empty"):
            rollouts.sample_rollouts(
                study.model_copy(
                    update={"rollouts": study.rollouts.model_copy(update={"samples": 2})}
                ),
                chosen[3:],
            )
    said_of_all = " ".join(str(warning.message) for warning in warned)
    assert re.search("1 x no choices: .*PROHIBITED", said_of_all), "with each reason"
    assert re.search("1 x the server gave up .*'abort'", said_of_all)
    end = loading.load_tokenizer(study).eos_token_id
    assert [
        (row.prompt, row.completion, row.truncated, row.completion_ids[-1] == end)
        for row in table.itertuples()
    ] == [
        (chosen[0].question, "whole", False, True),
        (chosen[1].question, "cut", True, False),
    ], "what was cut for any reason has no end token"


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_wrong_key_or_model_stops_at_once_and_names_what_to_check(status, key, tmp_path):
    with Teacher(failing(status)) as teacher:
        with pytest.raises(
            ValueError,
            match=rf"model 'teacher' at http://127\.0\.0\.1:{teacher.port}/v1.*{status}"
            r".*check endpoint\.url .*TEACHER_KEY",
        ):
            servers.complete(
                teacher.endpoint(key=key, concurrency=2, retries=5),
                questions(20),
                folder=tmp_path,
                **HOW,
            )
        assert len(teacher.asked) <= 2, "not tried again, and no prompt after those under way"


def test_a_page_in_place_of_an_answer_asks_whether_the_url_is_right(tmp_path):
    with (
        Teacher(lambda body, number: (200, "<html>welcome</html>")) as teacher,
        pytest.raises(
            ConnectionError,
            match=r"no chat completion: <html>welcome</html>\): does the URL go up to",
        ),
    ):
        servers.complete(teacher.endpoint(), ["a"], folder=tmp_path, **HOW)


def test_a_page_after_an_answer_says_nothing_of_the_url(tmp_path):
    with Teacher(unless_bad(lambda body, number: (200, {"status": "starting"}))) as teacher:
        servers.complete(teacher.endpoint(), ["a"], folder=tmp_path, **HOW)
        with pytest.raises(
            ConnectionError, match=r'no chat completion: \{"status": "starting"\}\): 1 of 2'
        ):
            servers.complete(teacher.endpoint(), ["a", "bad"], folder=tmp_path, **HOW)


# --- the key -------------------------------------------------------------------------------------


def test_a_key_that_is_not_set_is_named(monkeypatch, tmp_path):
    monkeypatch.delenv("TEACHER_KEY", raising=False)
    with Teacher() as teacher, pytest.raises(ValueError, match="environment variable TEACHER_KEY"):
        servers.complete(teacher.endpoint(key="TEACHER_KEY"), ["a"], folder=tmp_path, **HOW)
    assert not teacher.asked, "nothing was sent"


def test_no_other_key_is_sent_to_a_server_that_wants_none(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Teacher() as teacher:
        servers.complete(teacher.endpoint(), ["a"], folder=tmp_path, **HOW)
    assert KEY not in str(teacher.keys), (
        "the client would otherwise send OPENAI_API_KEY to whatever server this is"
    )


@pytest.mark.parametrize(
    ("status", "kind"),
    [(401, ValueError), (400, ValueError), (429, ConnectionError), (200, ValueError)],
)
def test_the_key_is_sent_and_written_nowhere(status, kind, key, tmp_path, caplog, capfd):
    caplog.set_level(logging.DEBUG)
    with Teacher(failing(status, f"the key {KEY} is not good")) as teacher:
        with pytest.raises(kind) as error:
            servers.complete(teacher.endpoint(key=key), ["a"], folder=tmp_path, **HOW)
        teacher.behave = lambda body, number: (
            echo(body, number)
            if body["messages"][0]["content"] == "a"
            else failing(400, f"not with {KEY}")(body, number)
        )
        completions = servers.complete(
            teacher.endpoint(key=key), ["a", "bad"], folder=tmp_path, **HOW
        )
    assert set(teacher.keys) == {f"Bearer {KEY}"}, "the server gets it"
    assert [error.value.__cause__, error.value.__context__] == [None, None], (
        "no exception behind it carries the request"
    )
    files = [path.read_text() for path in tmp_path.iterdir()]
    assert len(files) == 1, "the answer is stored"
    assert KEY not in " ".join(
        [str(error.value), repr(completions), caplog.text, *capfd.readouterr(), *files]
    ), "errors, refusals, logs, output and files"


# --- a real server -------------------------------------------------------------------------------


def start_server(model, port, log):
    """`transformers serve` in a process of its own, ready to answer."""
    command = [
        sys.executable,
        "-m",
        "transformers.cli.transformers",
        "serve",
        str(model),
        "--device",
        "cpu",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
    ]
    process = subprocess.Popen(
        command,
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    for _ in range(600):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1)
            return process
        except OSError:
            assert process.poll() is None, f"the server ended: {log.read_text()}"
            time.sleep(0.2)
    process.kill()
    raise AssertionError(f"the server is not ready after two minutes: {log.read_text()}")


@pytest.mark.slow
@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn")),
    reason="transformers serve needs fastapi and uvicorn",
)
def test_a_real_server_that_is_killed_and_started_again_answers_as_the_model_does(tmp_path):
    profile = profiles.load("tiny")
    tokenizer, model = loading.load_tokenizer(profile), loading.load_model(profile, "base")
    asked = [problem.question for problem in problems.problem_sets(profile.problems)["test"][:40]]
    prompts = [loading.prompt_ids(tokenizer, question) for question in asked]
    expected = sampling.sample(
        model,
        prompts,
        max_new_tokens=60,
        end_ids=sampling.end_ids_of(model, tokenizer),
        batch_size=8,
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    source, answers = tmp_path / "base", tmp_path / "answers"
    shutil.copytree(loading.local_folder(loading.source_of(profile, "base")), source)
    settings = json.loads((source / "generation_config.json").read_text())
    # Otherwise this server is greedy at any temperature.
    (source / "generation_config.json").write_text(json.dumps({**settings, "do_sample": True}))
    endpoint = EndpointSettings(
        url=f"http://127.0.0.1:{port}/v1", model=str(source), concurrency=2, retries=1, timeout=60
    )
    how = {"samples": 1, "temperature": 0.0, "max_tokens": 60, "seed": 0, "folder": answers}

    process = start_server(source, port, tmp_path / "first.log")

    def kill_after_some_answers():
        while len(list(answers.glob("*.json"))) < 4 and process.poll() is None:
            time.sleep(0.005)
        process.kill()

    answers.mkdir()
    killer = threading.Thread(target=kill_after_some_answers)
    killer.start()
    try:
        with pytest.raises(ConnectionError, match=rf"of {len(asked)} prompts are finished"):
            servers.complete(endpoint, asked, **how)
    finally:
        process.kill()
        process.wait()
        killer.join()
    finished = len(list(answers.glob("*.json")))
    assert 4 <= finished < len(asked), "killed in the middle"

    process = start_server(source, port, tmp_path / "second.log")
    try:
        completions = servers.complete(endpoint, asked, **how)
        # One by one, since requests under way together share torch's generator in this server.
        singly = endpoint.model_copy(update={"concurrency": 1})
        drawn = [
            servers.complete(
                singly,
                asked[:2],
                **{**how, "samples": 4, "temperature": 1.5, "folder": tmp_path / name},
            )
            for name in ("drawn", "again")
        ]
        with pytest.raises(ValueError, match="'another'"):
            servers.complete(endpoint.model_copy(update={"model": "another"}), asked[:2], **how)
    finally:
        process.kill()
        process.wait()
    posts = (tmp_path / "second.log").read_text().count('POST /v1/chat/completions HTTP/1.1" 200')
    assert posts == len(asked) - finished + 2 * 2 * 4, (
        "exactly what was missing, and the drawn ones one by one: this server ignores n"
    )
    assert texts(completions) == [
        [tokenizer.decode(ids, skip_special_tokens=True)] for ids in expected
    ], "greedy answers are those of the model"
    assert [one.completion_tokens for (one,) in completions] == [len(ids) for ids in expected], (
        "token by token"
    )
    assert [one.finish_reason == "length" for (one,) in completions] == [
        ids[-1] != tokenizer.eos_token_id for ids in expected
    ], "cut ones say so"
    assert all(len(set(group)) > 1 for group in itertools.chain(*map(texts, drawn))), (
        "single requests of one prompt draw apart"
    )
    assert texts(drawn[0]) == texts(drawn[1]), "and again from the same seeds"
