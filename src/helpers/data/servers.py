"""Completions written by a server that speaks OpenAI's chat-completions protocol (vLLM, SGLang,
llama.cpp's server, hosted teachers).

Before `rollouts`, which calls it for the profiles whose rollouts a server writes. What a
prompt was answered is stored in a small file of its own from the moment it arrives, so that an
interrupted call goes on where it stopped and nothing is paid for twice.
"""

import asyncio
import functools
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import openai
from tqdm.auto import tqdm

from adapter_geometry import storage
from helpers import store
from helpers.profiles import EndpointSettings

Messages = list[dict[str, Any]]
Prompt = str | Messages  # a question alone is the user's only message

_REFUSALS = (400, 413, 422)  # the server will not have this request, whatever it does with others
_MISTAKES = (401, 403, 404)  # no request will do better before url, model or key are mended


@dataclass(frozen=True)
class Completion:
    """One answer.

    `finish_reason` is the server's ("stop"; "length" = cut at max_tokens), or "refused: ..." with
    its words and an empty text. Tokens are the server's count for the request, shared evenly among
    its choices: their sum is what was paid for, a single one no length of a text. None where the
    server does not count.
    """

    text: str
    finish_reason: str
    prompt_tokens: float | None
    completion_tokens: float | None


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
    server hands the reasoning over apart from the answer (`reasoning_content` or `reasoning`), the
    text is "<think>\\n...\\n</think>\\n\\n..." as the model wrote it, and stays open if it was cut
    inside the reasoning.

    Each prompt's answers lie under `folder` in a file named by a digest of the model's name, the
    messages, temperature, max_tokens (tokens) and seed: answers to other settings are never taken,
    and a larger K asks for the missing ones only. The seed sent follows from that digest and the
    completion's number.

    A prompt that the server refuses (HTTP 400, 413, 422) gets refused completions, which are not
    stored: the next call asks again. An interrupt starts nothing new and stores what is under way;
    a second one leaves at once.

    Raises ValueError when the key's variable is not set, for HTTP 401, 403 and 404, and when every
    prompt is refused; ConnectionError when an answer does not come for all retries. All finished
    answers are on disk by then, and the same call goes on from there.
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


def estimate(
    endpoint: EndpointSettings,
    prompts: Sequence[Prompt],
    samples: int,
    max_tokens: int,
    count_tokens: Callable[[Messages], int],
) -> dict[str, int | float]:
    """What answering all prompts takes at most, tries that were lost on the way not counted:
    {requests, prompt_tokens, completion_tokens, dollars}.

    `count_tokens` maps a list of messages to its number of tokens. A server that honours n reads
    each prompt once and not K = `samples` times; the bound supposes that it does not.
    """
    prompt_tokens = samples * sum(count_tokens(_messages(prompt)) for prompt in prompts)
    completion_tokens = samples * max_tokens * len(prompts)
    dollars = (
        prompt_tokens * endpoint.price_input + completion_tokens * endpoint.price_output
    ) / 1e6
    return {
        "requests": samples * len(prompts),
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "dollars": dollars,
    }


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

    A prompt goes by the digest of all that determines its answers. `requests`, `answers` (the
    stored ones and those that have come since) and `refusals` (the server's words) are by digest;
    `order` holds the digests of the prompts in their order, equal prompts more than once.
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
        requests = [
            {"model": endpoint.model, "messages": _messages(prompt), **settings, "seed": seed}
            for prompt in prompts
        ]
        self.order = [storage.digest(request) for request in requests]
        self.requests = dict(zip(self.order, requests, strict=True))
        self.answers = {digest: self._stored_answers(digest) for digest in self.requests}
        self.refusals: dict[str, str] = {}
        self.error: BaseException | None = None
        self.next_start = 0.0  # time.monotonic() of the next try, where the rate is limited

    def _file(self, digest: str) -> Path:
        return self.folder / f"{digest}.json"

    def _stored_answers(self, digest: str) -> list[Completion]:
        if not self._file(digest).exists():
            return []
        stored = store.read_json(self._file(digest))
        return [Completion(**fields) for fields in stored["completions"]]

    def _store_answers(self, digest: str) -> None:
        completions = [asdict(completion) for completion in self.answers[digest]]
        record = {"asked": self.requests[digest], "completions": completions}
        with storage.whole(self._file(digest)) as temporary_path:
            temporary_path.write_text(store.as_json(record))

    def run(self, outcome: "Future[None]") -> None:
        """Answer all prompts, in a thread; `outcome` gets the end of it, an error included."""
        try:
            outcome.set_result(asyncio.run(self._answer_all()))
        except BaseException as error:
            outcome.set_exception(error)

    async def _answer_all(self) -> None:
        slots = asyncio.Semaphore(self.endpoint.concurrency)
        rate = self.endpoint.requests_a_minute
        hooks: list[Callable[..., Any]] = []
        if rate:
            hooks = [functools.partial(self._wait_for_turn, 60 / rate)]
        finished = sum(min(len(answers), self.samples) for answers in self.answers.values())
        with tqdm(
            total=self.samples * len(self.answers),
            initial=finished,
            desc=f"answers of {self.endpoint.model}",
            unit="completion",
        ) as progress:
            async with openai.AsyncOpenAI(
                base_url=self.endpoint.url,
                api_key=self.key,
                max_retries=self.endpoint.retries,
                timeout=self.endpoint.timeout,
                http_client=openai.DefaultAsyncHttpxClient(event_hooks={"request": hooks}),
            ) as client:
                tasks = [self._answer(client, slots, digest, progress) for digest in self.answers]
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
        """Ask for one prompt until it has all its answers, is refused, or the call stops."""
        answers, takes_n = self.answers[digest], True
        async with slots:
            while len(answers) < self.samples and self.error is None:
                # All missing ones at once, unless the server refuses the very field: then singly.
                # A server that honours n reads the prompt once; one that ignores it sends a single
                # choice, and the loop asks for the rest.
                missing = self.samples - len(answers)
                asks_for_several = takes_n and missing > 1
                # One seed per completion, however they are asked for: vLLM adds a choice's number
                # to the seed, so that completion i has the first one's seed plus i.
                seed = int(digest[:7], 16) + len(answers)
                try:
                    reply = await client.chat.completions.create(
                        model=self.endpoint.model,
                        messages=self.requests[digest]["messages"],
                        seed=seed,
                        n=missing if asks_for_several else openai.omit,
                        **self.settings,
                    )
                    if not getattr(reply, "choices", None):
                        raise ValueError(
                            "a reply without choices: "
                            "does the URL go up to and including the version, such as /v1?"
                        )
                except (openai.OpenAIError, ValueError) as error:
                    if getattr(error, "status_code", None) not in _REFUSALS:
                        # Stops the call: no prompt starts another request. The first error counts.
                        self.error = self.error or error
                    elif asks_for_several:
                        # A refusal is believed only of a request for a single completion.
                        takes_n = False
                    else:
                        self.refusals[digest] = self._words(error)
                        return
                else:
                    received = _completions(reply)
                    answers += received
                    self._store_answers(digest)
                    progress.update(min(len(received), missing))

    def _words(self, error: BaseException) -> str:
        """What an error says, without the key, which some servers quote."""
        words = " ".join(str(part) for part in (error, error.__cause__) if part)
        return words.replace(self.key, "***")

    def check(self) -> None:
        """Raise what stopped the call, if anything did."""
        where = f"model {self.endpoint.model!r} at {self.endpoint.url}"
        key = (
            f"the key in the environment variable {self.endpoint.key}"
            if self.endpoint.key
            else "whether the server wants a key (endpoint.key)"
        )
        way_out = (
            "check endpoint.url (up to and including the version, such as /v1), "
            f"endpoint.model and {key}"
        )
        if self.error and getattr(self.error, "status_code", None) in _MISTAKES:
            raise ValueError(f"{where}: {self._words(self.error)}; {way_out}")
        if self.error:
            finished = sum(len(answers) >= self.samples for answers in self.answers.values())
            raise ConnectionError(
                f"{where} stopped answering ({self._words(self.error)}): "
                f"{finished} of {len(self.answers)} prompts are finished and kept in "
                f"{self.folder}; the same command goes on from there"
            )
        if self.refusals and not any(self.answers.values()):
            raise ValueError(
                f"{where} refuses every prompt ({next(iter(self.refusals.values()))}); {way_out}, "
                "and whether the model takes this temperature, max_tokens and seed"
            )

    def completions(self, digest: str) -> list[Completion]:
        """The K completions of a prompt, refused ones in the place of those that are missing."""
        answers = self.answers[digest][: self.samples]
        refused = Completion("", f"refused: {self.refusals.get(digest)}", None, None)
        return answers + [refused] * (self.samples - len(answers))


def _completions(reply: Any) -> list[Completion]:
    """The choices of a reply, its tokens shared evenly among them."""
    tokens = [getattr(reply.usage, kind, None) for kind in ("prompt_tokens", "completion_tokens")]
    shares = [None if count is None else count / len(reply.choices) for count in tokens]
    return [
        Completion(_text(choice), choice.finish_reason or "", *shares) for choice in reply.choices
    ]


def _text(choice: Any) -> str:
    """A choice's text, its reasoning included."""
    message = choice.message
    content: str = message.content or ""
    reasoning = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    if not reasoning:
        return content
    thought: str = "<think>\n" + reasoning.strip("\n")
    if choice.finish_reason == "length" and not content:
        return thought  # cut inside the reasoning
    return f"{thought}\n</think>\n\n" + content.lstrip("\n")
