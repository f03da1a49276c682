"""Endpoints: completions written by a server that speaks OpenAI's chat-completions protocol (vLLM, SGLang, llama.cpp's server, hosted teachers).

Stands beside `rollouts`, which calls it for the profiles whose rollouts a server writes. What a prompt was answered is kept in a small file
of its own from the moment it arrives, so that an interrupted call goes on where it stopped and nothing is paid for twice.
"""

import asyncio
import os
import threading
import time
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path

import openai
from tqdm.auto import tqdm

from adapter_geometry import storage
from helpers import store

_REFUSALS = (400, 413, 422)  # the server will not have this request, whatever it does with others
_MISTAKES = (401, 403, 404)  # no request will do better before url, model or key are mended


@dataclass(frozen=True)
class Completion:
    """One answer. `finish_reason` is the server's ("stop"; "length" = cut at max_tokens), or "refused: ..." with its words and an empty text.

    Tokens are the server's count for the request, shared evenly among its choices: their sum is what was paid for, a single one no length
    of a text. None where the server does not count.
    """

    text: str
    finish_reason: str
    prompt_tokens: float | None
    completion_tokens: float | None


def complete(endpoint, prompts, *, samples, temperature, max_tokens, seed, folder):
    """K = `samples` completions of each prompt, a list of lists of `Completion` in the prompts' order; equal prompts share their answers.

    A prompt is a list of messages, or a question that is sent as the user's only message. Where a server hands the reasoning over apart from
    the answer (`reasoning_content` or `reasoning`), the text is "<think>\\n...\\n</think>\\n\\n..." as the model wrote it, and stays open if it was cut
    inside the reasoning. Each prompt's answers lie under `folder` in a file named by a digest of the model's name, the messages, temperature,
    max_tokens (tokens) and seed: answers to other settings are never taken, and a larger K asks for the missing ones only.
    The seed sent follows from that digest and the completion's number. A prompt that the server refuses (HTTP 400, 413, 422) gets refused
    completions, which are not kept: the next call asks again. An interrupt starts nothing new and keeps what is under way; a second one leaves at once.

    Raises ValueError when the key's variable is not set, for HTTP 401, 403 and 404, and when every prompt is refused; ConnectionError when an answer
    does not come for all retries. All finished answers are on disk by then, and the same call goes on from there.
    """
    call = _Call(
        endpoint,
        prompts,
        samples,
        {"temperature": float(temperature), "max_tokens": max_tokens},
        seed,
        Path(folder),
    )
    outcome = Future()
    threading.Thread(
        target=call.run, args=[outcome], daemon=True
    ).start()  # Jupyter's own event loop does not allow a second one in its thread
    try:
        outcome.result()
    except KeyboardInterrupt:
        call.error = "interrupted"
        outcome.exception()
        raise
    call.check()
    return [call.completions(mark) for mark in call.order]


def estimate(endpoint, prompts, samples, max_tokens, count_tokens):
    """What answering all prompts takes at most, tries that were lost on the way not counted: {requests, prompt_tokens, completion_tokens, dollars}.

    `count_tokens` maps a list of messages to its number of tokens. A server that honours n reads each prompt once and not K = `samples` times;
    the bound supposes that it does not.
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


def _key(endpoint):
    if endpoint.key is None:
        return "no-key-wanted"  # the client insists on one, and would otherwise send OPENAI_API_KEY to whatever server this is
    if not (key := os.environ.get(endpoint.key, "").strip()):
        raise ValueError(
            f"the key for {endpoint.url} is not set: put it into the environment variable {endpoint.key}, or name another one in endpoint.key"
        )
    return key


def _messages(prompt):
    return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt


class _Call:
    """One call of `complete`: the answers so far by the prompt's mark, and why it stopped, if it did."""

    def __init__(self, endpoint, prompts, samples, settings, seed, folder):
        self.endpoint, self.key, self.samples, self.settings, self.folder = (
            endpoint,
            _key(endpoint),
            samples,
            settings,
            folder,
        )
        asked = [
            {"model": endpoint.model, "messages": _messages(prompt), **settings, "seed": seed}
            for prompt in prompts
        ]
        self.order = [storage.digest(one) for one in asked]
        self.asked = dict(zip(self.order, asked, strict=True))
        self.answers = {mark: self._kept(mark) for mark in self.asked}
        self.refused, self.error, self.next_start = {}, None, 0.0

    def _kept(self, mark):
        path = self.folder / f"{mark}.json"
        return (
            [Completion(**fields) for fields in store.read_json(path)["completions"]]
            if path.exists()
            else []
        )

    def run(self, outcome):
        try:
            outcome.set_result(asyncio.run(self._answer_all()))
        except BaseException as error:
            outcome.set_exception(error)

    async def _answer_all(self):
        places, hooks = (
            asyncio.Semaphore(self.endpoint.concurrency),
            {"request": [self._wait_for_turn] if self.endpoint.requests_a_minute else []},
        )
        found = sum(min(len(answers), self.samples) for answers in self.answers.values())
        with tqdm(
            total=self.samples * len(self.answers),
            initial=found,
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
                await asyncio.gather(
                    *(self._answer(client, places, mark, progress) for mark in self.answers)
                )

    async def _wait_for_turn(self, request):
        """Tries start evenly spaced; the client runs this before each, its own retries included."""
        now = time.monotonic()
        self.next_start = max(now, self.next_start + 60 / self.endpoint.requests_a_minute)
        await asyncio.sleep(self.next_start - now)

    async def _answer(self, client, places, mark, progress):
        answers, takes_n = self.answers[mark], True
        async with places:
            while len(answers) < self.samples and self.error is None:
                missing = self.samples - len(answers)
                number = (
                    {"n": missing} if takes_n and missing > 1 else {}
                )  # some servers refuse the very field
                draw = (
                    int(mark[:7], 16) + len(answers)
                )  # vLLM adds a choice's number to it: one seed a completion, however they are asked for
                try:
                    reply = await client.chat.completions.create(
                        model=self.endpoint.model,
                        messages=self.asked[mark]["messages"],
                        seed=draw,
                        **self.settings,
                        **number,
                    )
                    if not getattr(reply, "choices", None):
                        raise ValueError(
                            "a reply without choices: does the URL go up to and including the version, such as /v1?"
                        )
                except (openai.OpenAIError, ValueError) as error:
                    if getattr(error, "status_code", None) not in _REFUSALS:
                        self.error = self.error or error
                    elif number:
                        takes_n = (
                            False  # a refusal is believed only of a request for a single completion
                        )
                    else:
                        self.refused[mark] = self._words(error)
                        return
                else:
                    fresh = _completions(reply)
                    answers += fresh
                    with storage.whole(self.folder / f"{mark}.json") as beside:
                        beside.write_text(
                            store.as_json(
                                {
                                    "asked": self.asked[mark],
                                    "completions": [asdict(one) for one in answers],
                                }
                            )
                        )
                    progress.update(min(len(fresh), missing))

    def _words(self, error):
        """What an error says, without the key, which some servers quote."""
        return " ".join(str(part) for part in (error, error.__cause__) if part).replace(
            self.key, "***"
        )

    def check(self):
        """Raise what stopped the call, if anything did."""
        where = f"model {self.endpoint.model!r} at {self.endpoint.url}"
        key = (
            f"the key in the environment variable {self.endpoint.key}"
            if self.endpoint.key
            else "whether the server wants a key (endpoint.key)"
        )
        way_out = f"check endpoint.url (up to and including the version, such as /v1), endpoint.model and {key}"
        if getattr(self.error, "status_code", None) in _MISTAKES:
            raise ValueError(f"{where}: {self._words(self.error)}; {way_out}")
        if self.error:
            finished = sum(len(answers) >= self.samples for answers in self.answers.values())
            raise ConnectionError(
                f"{where} stopped answering ({self._words(self.error)}): {finished} of {len(self.answers)} prompts are finished and kept in "
                f"{self.folder}; the same command goes on from there"
            )
        if self.refused and not any(self.answers.values()):
            raise ValueError(
                f"{where} refuses every prompt ({next(iter(self.refused.values()))}); {way_out}, and whether the model takes this temperature, "
                "max_tokens and seed"
            )

    def completions(self, mark):
        answers = self.answers[mark][: self.samples]
        return answers + [Completion("", f"refused: {self.refused.get(mark)}", None, None)] * (
            self.samples - len(answers)
        )


def _completions(reply):
    """The choices of a reply, its tokens shared evenly among them."""
    tokens = [getattr(reply.usage, kind, None) for kind in ("prompt_tokens", "completion_tokens")]
    shares = [None if count is None else count / len(reply.choices) for count in tokens]
    return [
        Completion(_text(choice), choice.finish_reason or "", *shares) for choice in reply.choices
    ]


def _text(choice):
    content, message = choice.message.content or "", choice.message
    reasoning = getattr(message, "reasoning_content", None) or getattr(message, "reasoning", None)
    if not reasoning:
        return content
    thought = "<think>\n" + reasoning.strip("\n")
    return (
        thought
        if choice.finish_reason == "length" and not content
        else f"{thought}\n</think>\n\n" + content.lstrip("\n")
    )
