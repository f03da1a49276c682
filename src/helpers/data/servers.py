"""Completions written by a server that speaks OpenAI's chat-completions protocol (vLLM, SGLang,
llama.cpp's server, hosted teachers).

Before `rollouts`, which calls it for the profiles whose rollouts a server writes. What a
prompt was answered is stored in a small file of its own from the moment it arrives, so that an
interrupted call goes on where it stopped and nothing is paid for twice.
"""

import asyncio
import functools
import json
import os
import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import openai
from tqdm.auto import tqdm

from adapter_geometry import storage
from helpers import store
from helpers.profiles import THOUGHT, EndpointSettings

Messages = list[dict[str, Any]]
Prompt = str | Messages  # a question alone is the user's only message

_REFUSALS = (400, 413, 422)  # the server will not have this request, whatever it does with others
_MISTAKES = (401, 403, 404)  # no request will do better before url, model or key are mended
# Reasons of a text that ended by itself: OpenAI's, Together's, Text Generation Inference's,
# Anthropic's. With any other one, or none, it was cut.
_WHOLE = ("stop", "stop_sequence", "eos", "eos_token", "end_turn")
# The server gave up, and may not the next time: DeepSeek; vLLM and SGLang; OpenRouter.
_GAVE_UP = ("insufficient_system_resource", "abort", "error")
_FIRST = 8  # prompts; if they all have no answer for one reason, the others are not asked
_LONGEST_WORDS = 300  # characters of what a server says


@dataclass(frozen=True)
class Completion:
    """One answer.

    `finish_reason` is the server's ("stop"; "length" = cut at max_tokens; "" where it has none). An
    empty text is no answer, and has in its place why there is none, in the server's words where it
    has some. Tokens are the server's count for the request, shared evenly among its choices: their
    sum is what was paid for, a single one no length of a text. None where the server does not
    count.
    """

    text: str
    finish_reason: str
    prompt_tokens: float | None
    completion_tokens: float | None

    @property
    def is_cut(self) -> bool:
        """Whether the text broke off, at a limit or for any other reason."""
        return self.finish_reason.lower() not in _WHOLE


def complete(
    endpoint: EndpointSettings,
    prompts: Sequence[Prompt],
    *,
    samples: int,
    temperature: float,
    max_tokens: int,
    seed: int,
    folder: str | os.PathLike[str],
) -> list[list[Completion]]:
    """K = `samples` completions of each prompt, in the prompts' order; equal prompts share their
    answers.

    A prompt is a list of messages, or a question that is sent as the user's only message. Where a
    server hands the reasoning over apart from the answer (`reasoning_content`, `reasoning`, or
    parts of the content), the text is "<think>\\n...\\n</think>\\n\\n..." as the model wrote it,
    and stays open if it was cut inside the reasoning.

    Each prompt's answers lie under `folder` in a file named by a digest of the endpoint's identity
    (URL, model, names of the parameters), the messages, temperature, max_tokens (tokens) and seed:
    answers to other settings are never taken, and a larger K asks for the missing ones only. The
    seed sent follows from all of these but the URL and the names, and from the completion's number.

    No answer is: a refusal (HTTP 400, 413, 422, and 403 where the words are about the prompt); a
    reply without choices, as blocked prompts get; a choice without a text, or with one that the
    server gave up ("abort", "error", "insufficient_system_resource"); content of another kind than
    text. The prompt is asked no more in this call, its missing completions have empty texts and say
    why, and as they are not stored, the next call asks for them. A text that was cut for any other
    reason ("length", "content_filter", null) is an answer. An error inside a reply of status 200 is
    treated as one of its own code.

    An interrupt starts nothing new and stores what is under way; a second one leaves at once.

    Raises ValueError when the key's variable is not set, for HTTP 401, 403 and 404, and when no
    prompt has an answer, after the first 8 prompts if all have the same reason; ConnectionError
    when a reply does not come for all retries, or is no chat completion. All finished answers are
    on disk by then, and the same call goes on from there. The other prompts are asked when the
    first 8 are through.
    """
    settings = {"temperature": float(temperature), "max_tokens": max_tokens}
    call = _Call(endpoint, prompts, samples, settings, seed, Path(folder))
    outcome: Future[None] = Future()
    # A thread, since Jupyter's own event loop does not allow a second one in its thread.
    threading.Thread(target=call.run, args=[outcome], daemon=True).start()
    try:
        outcome.result()
    except KeyboardInterrupt as interrupt:
        call.error = interrupt
        outcome.exception()  # waits for the answers under way; a second interrupt ends this too
        raise
    call.check()
    return [call.completions(digest) for digest in call.order]


def _key(endpoint: EndpointSettings) -> str:
    if endpoint.key is None:
        # The client insists on one, and would otherwise send OPENAI_API_KEY to whatever server this
        # is.
        return "no-key-wanted"
    if not (key := os.environ.get(endpoint.key, "").strip()):
        raise ValueError(
            f"the key for {endpoint.url} is not set: put it into the environment variable "
            f"{endpoint.key}, or name another one in endpoint.key"
        )
    return key


def _messages(prompt: Prompt) -> Messages:
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


class _Call:
    """One call of `complete`: the answers so far, and why it stopped, if it did.

    A prompt goes by the digest of all that determines its answers. By digest: `requests` (what
    determines the answers), `first_seeds` (of completion 0; completion i has i more), `answers` (by
    the completion's number, the stored ones and those that have come since) and `reasons` (why a
    prompt has not all of its answers). `order` holds the digests of the prompts in their order,
    equal prompts more than once.
    """

    def __init__(
        self,
        endpoint: EndpointSettings,
        prompts: Sequence[Prompt],
        samples: int,
        settings: dict[str, Any],
        seed: int,
        folder: Path,
    ) -> None:
        self.endpoint, self.key = endpoint, _key(endpoint)
        self.samples, self.settings, self.folder = samples, settings, folder
        self.order: list[str] = []
        self.requests: dict[str, dict[str, Any]] = {}
        self.first_seeds: dict[str, int] = {}
        for prompt in prompts:
            question = {"model": endpoint.model, "messages": _messages(prompt), **settings}
            request = {**question, "seed": seed, **endpoint.identity}
            digest = storage.digest(request)
            self.order.append(digest)
            self.requests[digest] = request
            # The same at any URL, so that a server that has moved draws the same.
            self.first_seeds[digest] = int(storage.digest({**question, "seed": seed})[:7], 16)
        self.answers = {digest: self._stored_answers(digest) for digest in self.requests}
        self.has_answers = any(self.answers.values())
        self.reasons: dict[str, str] = {}
        self.names: dict[str, str | None] = dict(endpoint.parameters.items())
        self.takes_n = self.names.get("n", "n") is not None
        self.error: BaseException | None = None
        self.next_start = 0.0  # time.monotonic() of the next try, where the rate is limited

    def _file(self, digest: str) -> Path:
        return self.folder / f"{digest}.json"

    def _stored_answers(self, digest: str) -> dict[int, Completion]:
        if not self._file(digest).exists():
            return {}
        stored = store.read_json(self._file(digest))["completions"]
        return {number: Completion(**fields) for number, fields in enumerate(stored) if fields}

    def _store_answers(self, digest: str) -> None:
        answers = self.answers[digest]
        # Null for a completion that is still missing before others.
        completions = [
            asdict(answers[number]) if number in answers else None
            for number in range(max(answers) + 1)
        ]
        record = {"asked": self.requests[digest], "completions": completions}
        with storage.whole(self._file(digest)) as temporary_path:
            temporary_path.write_text(store.as_json(record))

    def _missing(self, digest: str) -> list[int]:
        """Numbers of the completions that a prompt still lacks."""
        return [number for number in range(self.samples) if number not in self.answers[digest]]

    def run(self, outcome: "Future[None]") -> None:
        """Answer all prompts, in a thread; `outcome` gets the end of it, an error included."""
        try:
            outcome.set_result(asyncio.run(self._answer_all()))
        except BaseException as error:
            outcome.set_exception(error)

    async def _answer_all(self) -> None:
        slots = asyncio.Semaphore(self.endpoint.concurrency)
        rate = self.endpoint.requests_a_minute
        hooks: dict[str, list[Callable[..., Any]]] = {"response": [_take_status_of_error]}
        if rate:
            hooks["request"] = [functools.partial(self._wait_for_turn, 60 / rate)]
        total = self.samples * len(self.answers)
        unfinished = [digest for digest in self.answers if self._missing(digest)]
        # The first ones alone, where nothing was answered yet.
        first = 0 if self.has_answers else _FIRST
        with tqdm(
            total=total,
            initial=total - sum(len(self._missing(digest)) for digest in unfinished),
            desc=f"answers of {self.endpoint.model}",
            unit="completion",
        ) as progress:
            async with openai.AsyncOpenAI(
                base_url=self.endpoint.url,
                api_key=self.key,
                max_retries=self.endpoint.retries,
                timeout=self.endpoint.timeout,
                http_client=openai.DefaultAsyncHttpxClient(event_hooks=hooks),
            ) as client:
                for part in (unfinished[:first], unfinished[first:]):
                    if not self._is_in_vain():
                        tasks = [self._answer(client, slots, digest, progress) for digest in part]
                        await asyncio.gather(*tasks)

    async def _wait_for_turn(self, pause: float, request: Any) -> None:
        """Starts tries `pause` seconds apart; the client runs this before each request, its own
        retries included."""
        now = time.monotonic()
        self.next_start = max(now, self.next_start + pause)
        await asyncio.sleep(self.next_start - now)

    async def _answer(
        self, client: openai.AsyncOpenAI, slots: asyncio.Semaphore, digest: str, progress: Any
    ) -> None:
        """Ask for one prompt until it has all its answers, gets none, or the call stops."""
        was_refused_n = False
        async with slots:
            while (missing := self._missing(digest)) and self.error is None:
                # All missing ones at once, unless the server refuses the very field: then singly.
                # A server that honours n reads the prompt once; one that ignores it sends a single
                # choice, and the loop asks for the rest.
                first, count = missing[0], len(missing)
                are_consecutive = missing[-1] - first == count - 1
                asks_for_n = self.takes_n and not was_refused_n and count > 1 and are_consecutive
                # One seed per completion, however they are asked for: vLLM adds a choice's number
                # to the seed, so that completion i has the first one's seed plus i.
                parameters = {**self.settings, "seed": self.first_seeds[digest] + first}
                if asks_for_n:
                    parameters["n"] = count
                names = {name: self.names.get(name, name) for name in parameters}
                try:
                    # Not the client's own method for completions, which takes OpenAI's parameters
                    # only, and makes of each reply a completion with whatever fields it has.
                    reply = await client.post(
                        "/chat/completions",
                        cast_to=object,
                        body={
                            "model": self.endpoint.model,
                            "messages": self.requests[digest]["messages"],
                            **{names[name]: parameters[name] for name in names if names[name]},
                        },
                    )
                    received = _completions(reply)
                except (openai.OpenAIError, ValueError) as error:
                    if not _is_refusal(error):
                        # Stops the call: no prompt starts another request. The first error counts.
                        self.error = self.error or error
                    elif asks_for_n:
                        # A refusal is believed only of a request for a single completion.
                        was_refused_n = True
                    else:
                        self.reasons[digest] = self._shown(_words(error))
                        return
                else:
                    numbered = enumerate(received, start=first)
                    if answers := {number: one for number, one in numbered if one.text}:
                        self.has_answers = True
                        if was_refused_n:
                            self.takes_n = False  # it was the field, and not the prompt
                        self.answers[digest] = {**answers, **self.answers[digest]}
                        self._store_answers(digest)
                        progress.update(count - len(self._missing(digest)))
                    if reasons := [one.finish_reason for one in received if not one.text]:
                        self.reasons[digest] = self._shown(reasons[0])
                        return

    def _is_in_vain(self) -> bool:
        """Whether the first prompts all have no answer for one reason, so that others would not."""
        # Without the words that have digits in them, such as a request's seed or identifier.
        alike = {re.sub(r"\w*\d\w*", "", words) for words in self.reasons.values()}
        return not self.has_answers and len(self.reasons) == _FIRST and len(alike) == 1

    def _shown(self, words: str) -> str:
        """Words of a server in one line, not too long, without the key, which some servers
        quote."""
        return " ".join(words.replace(self.key, "***").split())[:_LONGEST_WORDS]

    def check(self) -> None:
        """Raise what stopped the call, if anything did."""
        where = f"model {self.endpoint.model!r} at {self.endpoint.url}"
        if self.error and getattr(self.error, "status_code", None) in _MISTAKES:
            key = (
                f"the key in the environment variable {self.endpoint.key}"
                if self.endpoint.key
                else "whether the server wants a key (endpoint.key)"
            )
            raise ValueError(
                f"{where}: {self._shown(_words(self.error))}; check endpoint.url (up to and "
                f"including the version, such as /v1), endpoint.model and {key}"
            )
        if self.error:
            finished = sum(not self._missing(digest) for digest in self.answers)
            hint = ""
            if isinstance(self.error, _NoChatCompletion) and not self.has_answers:
                hint = "does the URL go up to and including the version, such as /v1? "
            raise ConnectionError(
                f"{where} stopped answering ({self._shown(_words(self.error))}): {hint}"
                f"{finished} of {len(self.answers)} prompts are finished and kept in "
                f"{self.folder}; the same command goes on from there"
            )
        if self.reasons and not self.has_answers:
            raise ValueError(
                f"{where} answers none of the {len(self.reasons)} prompts that it was asked "
                f"({next(iter(self.reasons.values()))}); a parameter that it does not take can be "
                "renamed or left out with endpoint.parameters"
            )

    def completions(self, digest: str) -> list[Completion]:
        """The K completions of a prompt, those that are missing with empty texts."""
        no_answer = Completion("", self.reasons.get(digest, ""), None, None)
        return [self.answers[digest].get(number, no_answer) for number in range(self.samples)]


def about_cut(reasons: Counter[str], whose: str = "") -> str | None:
    """A sentence on completions that were cut for other reasons than "length", from the finish
    reasons of all that were cut; None if there are none. whose: what follows the word."""
    others = Counter({reason: count for reason, count in reasons.items() if reason != "length"})
    if not others:
        return None
    said = ", ".join(f"{count} x {reason!r}" for reason, count in others.most_common(3))
    return (
        f"{others.total()} completions{whose} count as cut and get no end token, since their "
        f"finish_reason is no clean stop: {said}"
    )


# --- what a reply says ---------------------------------------------------------------------------


class _NoChatCompletion(ValueError):
    """A reply is not of the protocol."""


async def _take_status_of_error(response: Any) -> None:
    """Give a response of status 200 that holds an error and its code (OpenRouter's) that status, so
    that the client retries, waits and words it as any other."""
    if response.status_code != 200:
        return
    await response.aread()
    try:
        reply = response.json()
    except ValueError:
        return
    if not isinstance(reply, dict) or reply.get("choices"):
        return
    error = reply.get("error")
    code = str(error.get("code")) if isinstance(error, dict) else ""
    if re.fullmatch("[45][0-9][0-9]", code):
        response.status_code = int(code)


def _is_refusal(error: BaseException) -> bool:
    """Whether the server will not have one request, whatever it does with others."""
    if not isinstance(error, openai.APIStatusError):
        return False
    # OpenRouter's moderation has the status of a wrong key, but says what it found.
    is_flagged = isinstance(error.body, dict) and error.body.get("metadata")
    return error.status_code in _REFUSALS or bool(error.status_code == 403 and is_flagged)


def _words(error: BaseException) -> str:
    """What an error says."""
    words = " ".join(str(part) for part in (error, error.__cause__) if part)
    if isinstance(error, openai.APIStatusError) and words == f"Error code: {error.status_code}":
        # The client finds the words in bodies of OpenAI's shape only.
        words = f"{words} {error.response.text}"
    return words


def _completions(reply: Any) -> list[Completion]:
    """The choices of a reply, its tokens shared evenly among them; a single one with an empty text
    where there are none, or an error without a code.

    Raises _NoChatCompletion.
    """
    if not isinstance(reply, dict) or not ("choices" in reply or reply.get("error")):
        raise _NoChatCompletion(f"a reply that is no chat completion: {_as_text(reply)}")
    if not reply.get("choices"):
        return [Completion("", f"no choices: {_as_text(reply)}", None, None)]
    usage = reply.get("usage") or {}
    tokens = [usage.get(kind) for kind in ("prompt_tokens", "completion_tokens")]
    shares = [None if count is None else count / len(reply["choices"]) for count in tokens]
    return [_completion(choice, shares) for choice in reply["choices"]]


def _as_text(reply: Any) -> str:
    return reply if isinstance(reply, str) else json.dumps(reply, ensure_ascii=False)


def _completion(choice: dict[str, Any], tokens: Sequence[float | None]) -> Completion:
    """A choice's text, its reasoning included; an empty one with the reason, if it is no answer."""
    message, finish_reason = choice.get("message") or {}, choice.get("finish_reason") or ""
    error = choice.get("error")  # OpenRouter's, of a model that failed while it wrote
    if error or finish_reason in _GAVE_UP:
        why = f"the server gave up (finish_reason {finish_reason!r})"
        return Completion("", f"{why}: {_as_text(error)}" if error else why, *tokens)
    try:
        thought, answer = _reasoning_and_answer(message.get("content"))
    except ValueError as unknown_part:
        return Completion("", str(unknown_part), *tokens)
    thought = message.get("reasoning_content") or message.get("reasoning") or thought
    if not thought.strip() and not answer.strip():
        why = message.get("refusal") or f"an empty answer (finish_reason {finish_reason!r})"
        return Completion("", why, *tokens)
    completion = Completion(answer, finish_reason, *tokens)
    if not thought:
        return completion
    text = f"{THOUGHT[0]}\n" + thought.strip("\n")
    if answer or not completion.is_cut:
        text += f"\n{THOUGHT[1]}\n\n" + answer.lstrip("\n")
    return replace(completion, text=text)


def _reasoning_and_answer(content: Any) -> tuple[str, str]:
    """The two in a message's content: a text or null, or a list of parts (Mistral's).

    Raises ValueError for a part of another kind than "thinking" and "text".
    """
    if content is None or isinstance(content, str):
        return "", content or ""
    thought, answer = "", ""
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind == "text":
            answer += part["text"]
        elif kind == "thinking":
            thought += "".join(_reasoning_and_answer(part["thinking"]))
        else:
            raise ValueError(f"its content has a part of the kind {kind!r}, and not text")
    return thought, answer
