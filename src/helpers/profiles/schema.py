"""The fields of a profile: which exist, of which kinds, and what each means.

After `appearance`, before `helpers.profiles`, which makes these classes from the YAML files. What
`model_dump` writes goes into the identities of stored runs and tables: a field that is added, or
whose default changes, makes another study of every profile. Of `LoraSettings` the defaults are left
out of identities: they must never change.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    model_serializer,
    model_validator,
)

from helpers.profiles.appearance import Appearance, appearance

THOUGHT = ("<think>", "</think>")  # what opens and what closes a thought, in most models' words
# A path's end `scaled-dpo` is DPO's update stretched to the norm of the update at the other end.
SCALED = "scaled-"


def first_fault(error: ValidationError) -> str:
    """The first field that is wrong, why, and the value found, in one line."""
    first = error.errors()[0]
    if first["type"] == "value_error":  # of a validator here, which names what it compares
        reason = str(first["ctx"]["error"])
    else:
        reason = f"{first['msg']} (found {first['input']!r})"
    # Without the tags by which pydantic tells the two kinds of problems apart.
    field = ".".join(str(part) for part in first["loc"] if part not in ("templated", "collections"))
    return f"{field}: {reason}" if field else reason


_Copied = TypeVar("_Copied", bound="_Settings")


class _Settings(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def model_copy(
        self: _Copied, *, update: Mapping[str, Any] | None = None, deep: bool = False
    ) -> _Copied:
        """A copy with other values, which are checked and converted as in a profile's file;
        pydantic's own takes them as they are.

        Raises ValueError naming the settings and the field.
        """
        if not update:
            return super().model_copy(deep=deep)
        name = getattr(self, "name", None)
        what = type(self).__name__ + (f" {name!r}" if name else "")
        if unknown := set(update) - set(type(self).model_fields):
            raise ValueError(
                f"{what} has no field {min(unknown)!r}: it has {', '.join(type(self).model_fields)}"
            )
        # Only what was set: a copy's defaults stay defaults.
        values = {field: getattr(self, field) for field in self.model_fields_set} | dict(update)
        try:
            copy = type(self).model_validate(values)
        except ValidationError as error:
            raise ValueError(f"{what}: {first_fault(error)}") from error
        return copy.model_copy(deep=deep)


# --- problems ------------------------------------------------------------------------------------

_INSTRUCTION = "text after each question, for models that need to be told the answer's format"
_THOUGHT = (
    "marks around what a model thinks before it answers, where no box counts; none = all that it "
    "writes is the answer. Left out of identities where it is the default"
)


def _is_default_thought(marks: tuple[str, str] | None) -> bool:
    return marks == THOUGHT


class ProblemSettings(_Settings):
    """Which problems each split holds; all are drawn once from `seed`, and no two share their chain
    of operations."""

    seed: int = Field(description="draws every problem of the study")
    steps: tuple[int, ...] = Field(description="equations a problem needs, drawn uniformly")
    hard_steps: tuple[int, ...] = Field(description="the same for the hard set")
    train: int = Field(ge=1, description="prompts that the teacher answers")
    validation: int = Field(ge=1, description="problems on which hyper-parameters are chosen")
    test: int = Field(ge=1, description="problems of the accuracy table; 1319 as in GSM8K")
    hard: int = Field(ge=1, description="longer problems, the place of AIME")
    instruction: str = Field(default="", description=_INSTRUCTION)
    thought: tuple[str, str] | None = Field(
        default=THOUGHT, exclude_if=_is_default_thought, description=_THOUGHT
    )


class Source(_Settings):
    """One split of a public collection of problems: a data set of the hub, or a folder that holds
    the same files."""

    path: str = Field(
        description="name on the hub, or a folder (absolute, or relative to the repository) with "
        "the same files"
    )
    name: str | None = Field(
        default=None, description="the data set's configuration, where it has several"
    )
    split: str = Field(description="the data set's split")
    question: str = Field(description="column of the question")
    answer: str = Field(description="column of the answer")
    reads: Literal["answer", "after ####"] = Field(
        default="answer",
        description="what the column holds: the answer, or a solution that ends in #### and it "
        "(GSM8K)",
    )
    limit: int | None = Field(default=None, ge=1, description="take the first ones only")


class CollectionSettings(_Settings):
    """Problems from public collections in the place of templated ones."""

    seed: int = Field(description="draws the validation problems out of the training ones")
    train: Source = Field(description="prompts that the teacher answers")
    validation: int = Field(
        ge=1,
        description="problems set aside from the training ones, on which hyper-parameters are "
        "chosen",
    )
    test: Source = Field(description="problems of the accuracy table")
    hard: Source = Field(description="the small hard set")
    further: dict[str, Source] = Field(default={}, description="more test sets, by name")
    instruction: str = Field(default="", description=_INSTRUCTION)
    thought: tuple[str, str] | None = Field(
        default=THOUGHT, exclude_if=_is_default_thought, description=_THOUGHT
    )


def _kind_of_problems(settings: Any) -> str:
    """Which of the two classes a profile's problems are read as, so that an error names the field
    that is wrong in that one."""
    train = settings.get("train") if isinstance(settings, dict) else getattr(settings, "train", "")
    return "collections" if isinstance(train, (dict, Source)) else "templated"


# --- models --------------------------------------------------------------------------------------


class PretrainedModel(_Settings):
    """How one shipped model was made."""

    styles: dict[str, float] = Field(description="share of training texts in each style")
    error_rate: float = Field(
        ge=0,
        le=1,
        description="share of equations with a wrong result, so that sampling errs as people do",
    )
    steps: int = Field(ge=1, description="optimiser steps")
    learning_rate: float = Field(
        gt=0, description="peak of the schedule: short warm-up, then linearly to 0"
    )
    seed: int = Field(description="weights and order of texts")


class LoraSettings(_Settings):
    """A LoRA adapter; dW = (alpha / rank) B A."""

    rank: int = Field(ge=1)
    alpha: int = Field(ge=1)
    modules: tuple[str, ...] = Field(description="projections that carry an adapter")
    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="of a finished adapter's factors; the rounded factors are the adapter, for "
        "everyone",
    )


class PretrainingSettings(_Settings):
    """A profile's own models: made from random weights, or adapted from a pretrained model by LoRA
    over worked solutions."""

    architecture: dict[str, int | float | bool] | None = Field(
        default=None, description="fields of transformers' Qwen3Config, for random weights"
    )
    vocabulary: int | None = Field(
        default=None,
        ge=280,
        description="byte-level BPE tokens, digits single as in Qwen3, for random weights",
    )
    start: str | None = Field(default=None, description="the model of the profile that is adapted")
    lora: LoraSettings | None = Field(
        default=None, description="the adapter by which it is adapted"
    )
    batch_size: int = Field(ge=1, description="texts per step, of similar length")
    long_share: float = Field(
        ge=0, le=1, description="share of texts with as many steps as the hard set"
    )
    drill_share: float = Field(
        ge=0, le=1, description="share of texts that only practise arithmetic"
    )
    models: dict[str, PretrainedModel]

    @model_validator(mode="after")
    def _from_weights_or_from_a_model(self) -> "PretrainingSettings":
        parts = (self.architecture, self.vocabulary, self.start, self.lora)
        if [part is not None for part in parts] not in (
            [True, True, False, False],
            [False, False, True, True],
        ):
            raise ValueError(
                "pretraining takes either architecture and vocabulary, or start and lora"
            )
        return self


class PublishedSettings(_Settings):
    """Adapters that others trained and that stand for the runs of a profile."""

    source: str = Field(
        description="a repository of the hub (OWNER/NAME), or a folder, with one PEFT folder per "
        "adapter"
    )
    folders: dict[str, str] = Field(
        default={}, description="run -> its folder there, where that is not called like the run"
    )


class ComputeSettings(_Settings):
    """How a large model is held and run; the defaults are those of the small ones."""

    dtype: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="of the base's weights and of both passes; adapters are trained in float32",
    )
    attention: Literal["sdpa", "flash_attention_2"] = Field(
        default="sdpa", description="the attention kernel of transformers"
    )
    engine: Literal["transformers", "vllm"] = Field(
        default="transformers",
        description="what answers problems; vLLM needs other pins than this book's",
    )
    checkpoints_layers: bool = Field(
        default=False,
        description="recompute each layer in the backward pass instead of keeping what is inside "
        "it",
    )
    logits_tokens: int | None = Field(
        default=None,
        ge=1,
        description="tokens whose logits exist at one time, computed again in the backward pass; "
        "none = all",
    )
    processes: int = Field(
        default=1, ge=1, description="GPUs, one process each, that share a step's rows"
    )


# --- rollouts ------------------------------------------------------------------------------------


class RolloutSettings(_Settings):
    """How the table of rollouts is made."""

    source: Literal["model", "solutions", "endpoint", "file"] = Field(
        description="`model`: sampled from the teacher; `solutions`: worked solutions with errors "
        "(no teacher needed); `endpoint`: written by a server; `file`: rollouts that exist already"
    )
    samples: int = Field(ge=1, description="K, completions per prompt")
    temperature: float = Field(gt=0, description="1 = the teacher's own distribution")
    max_new_tokens: int = Field(
        ge=1,
        description="completion tokens, the end token included; longer ones are cut and say so",
    )
    seed: int
    batch_size: int = Field(ge=1, description="sequences sampled side by side")
    table: str | None = Field(
        default=None,
        description="a shipped table, relative to the repository; none = made under results/",
    )
    base_table: str | None = Field(
        default=None, description="the same for the rollouts that the base writes itself"
    )


class EndpointSettings(_Settings):
    """A server that writes rollouts, of the kind that speaks OpenAI's protocol: vLLM, SGLang, a
    llama.cpp server, or a hosted teacher."""

    url: str = Field(
        description="up to and including the version, for example http://localhost:8000/v1"
    )
    model: str = Field(description="the model's name at the server")
    parameters: dict[
        Literal["temperature", "max_tokens", "seed", "n"],
        Annotated[str, Field(pattern=r"^[A-Za-z_]\w*$")] | None,
    ] = Field(
        default={},
        description="what the server calls a parameter of the protocol, where it has another name "
        "for it; null = it takes none, and none is sent",
    )
    key: str | None = Field(
        default=None,
        description="name of the environment variable that holds the key; the key itself is "
        "written nowhere",
    )
    concurrency: int = Field(default=16, ge=1, description="requests under way at once")
    requests_a_minute: float | None = Field(
        default=None, gt=0, description="at most so many requests are started per minute"
    )
    retries: int = Field(
        default=6,
        ge=0,
        description="tries after the first, with growing pauses, for what may pass: timeouts, "
        "broken connections, 429 and 5xx",
    )
    timeout: float = Field(default=600, gt=0, description="seconds for one answer")
    price_input: float = Field(default=0, ge=0, description="dollars for a million prompt tokens")
    price_output: float = Field(
        default=0, ge=0, description="dollars for a million completion tokens"
    )

    @model_validator(mode="after")
    def _names_are_distinct(self) -> "EndpointSettings":
        kept = {"temperature", "max_tokens", "seed", "n"} - self.parameters.keys()
        names = ["model", "messages", *kept, *filter(None, self.parameters.values())]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"with these parameters two fields are sent as {twice[0]!r}")
        return self

    @property
    def identity(self) -> dict[str, Any]:
        """What determines the answers to a request, for the identities of kept answers and tables.

        Many servers take any name for the one model that they have, so the URL counts, its port
        included: what listens at another one may be another model. A table that is made asks the
        server no more, so that its profile can keep the URL of a server that is gone. Left out are
        the pace, the prices, the key, and what becomes of n, which only says how many answers come
        at once.
        """
        parameters = {name: sent for name, sent in self.parameters.items() if name != "n"}
        return {"url": self.url.rstrip("/"), "model": self.model, "parameters": parameters}


# --- measurements --------------------------------------------------------------------------------

_THREADS = "CPU threads; part of the spec because sums depend on it"


class EvaluationSettings(_Settings):
    """Greedy evaluation and the estimate of the divergence from the base."""

    max_new_tokens: int = Field(ge=1, description="as for rollouts")
    batch_size: int = Field(ge=1, description="sequences decoded side by side")
    kl_problems: int = Field(
        ge=1,
        description="validation prompts from which KL to the base is estimated, one sample each",
    )
    threads: int = Field(default=1, ge=1, description=_THREADS)


class SampledSettings(_Settings):
    """A small test set that every model answers many times, so that its accuracy is known better
    than its size allows."""

    split: str = Field(description="which set")
    samples: int = Field(ge=2, description="answers per problem")
    temperature: float = Field(gt=0, description="at which they are drawn")


class ConnectivitySettings(_Settings):
    """How finely the paths between updates are measured."""

    texts: int = Field(
        ge=1,
        description="held-out correct rollouts whose loss is taken along a path, one per problem",
    )
    points: int = Field(ge=3, description="points of a path, ends included")
    problems: int = Field(
        ge=1,
        description="test problems answered along the named paths: the first ones, always the same",
    )
    answered_points: int = Field(
        ge=3, description="points of a named path at which problems are answered, ends included"
    )
    answered_paths: tuple[tuple[str, str], ...] = Field(
        description="the named paths, from run to run or to `base`"
    )


class RepresentationSettings(_Settings):
    """From what hidden states are compared."""

    texts: int = Field(ge=10, description="held-out correct rollouts, one row per text")


# --- runs and the profile ------------------------------------------------------------------------


class Run(_Settings):
    """One training run: everything that may differ between two adapters of a profile."""

    name: str
    # Neither stored nor hashed: a run that is called differently is the same run.
    label: str | None = Field(default=None, exclude=True, description="in figures and tables")
    objective: str = Field(description="name in `objectives.OBJECTIVES`")
    options: dict[str, float | str] = Field(
        default={}, description="the objective's own parameters"
    )
    base: str = Field(
        default="base", description="the model it starts from, by its name in the profile"
    )
    writer: Literal["teacher", "base"] = Field(
        default="teacher", description="the model whose rollouts it trains on"
    )
    rows: str | None = Field(
        default=None,
        description="which rows of the table (`rollouts.select`); none = what the objective asks "
        "for",
    )
    learning_rate: float = Field(gt=0, description="peak of the cosine schedule")
    steps: int = Field(ge=1, description="optimiser steps")
    schedule: int | None = Field(
        default=None,
        ge=1,
        description="steps of the learning rate's schedule, where training stops before its end; "
        "none = steps",
    )
    batch_size: int = Field(ge=1, description="rows per step (pairs for a preference objective)")
    accumulation: int = Field(
        default=1, ge=1, description="micro-batches per step; must divide batch_size"
    )
    warmup: float = Field(
        ge=0, lt=1, description="share of steps of linear warm-up before the cosine"
    )
    weight_decay: float = Field(ge=0)
    clip: float = Field(gt=0, description="largest norm of the gradient")
    seed: int = Field(description="order of the prompts")
    init_seed: int = Field(description="initial A of the adapter")
    zero: Literal["A", "B"] = Field(
        default="B", description="the factor that starts at 0; the other one is drawn"
    )
    snapshots: tuple[int, ...] = Field(
        default=(), description="steps after which the adapter is also kept"
    )
    threads: int = Field(default=1, ge=1, description=_THREADS)

    @model_serializer(mode="wrap")
    def _without_what_is_not_set(self, write: Callable[["Run"], dict[str, Any]]) -> dict[str, Any]:
        """A run without a schedule of its own is written as it was before runs could have one, so
        that its hash is the same."""
        return {
            name: value
            for name, value in write(self).items()
            if name != "schedule" or value is not None
        }

    @model_validator(mode="after")
    def _schedule_covers_the_steps(self) -> "Run":
        if self.schedule is not None and self.schedule < self.steps:
            raise ValueError(
                f"a schedule of {self.schedule} steps ends before training does, after {self.steps}"
            )
        return self

    @model_validator(mode="after")
    def _micro_batches_fill_the_batch(self) -> "Run":
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"accumulation {self.accumulation} does not divide batch_size {self.batch_size}"
            )
        return self


class Controls(_Settings):
    """A group of runs that answer one question beside the main ones; one step of the pipeline
    trains them."""

    runs: tuple[str, ...]
    answers: bool = Field(
        default=True,
        description="whether they answer the test problems, or are compared by their updates only",
    )


class Profile(_Settings):
    """One study.

    `runs` maps each run's name to its `Run`; `main_runs` are the six of the paper, in the paper's
    order.
    """

    name: str
    title: str = Field(description="one line for the page")
    models: dict[str, str] = Field(
        description="name -> source of the weights (`models`), or `random` for untrained ones"
    )
    problems: Annotated[
        Annotated[ProblemSettings, Tag("templated")]
        | Annotated[CollectionSettings, Tag("collections")],
        Discriminator(_kind_of_problems),
    ]
    pretraining: PretrainingSettings | None = Field(
        default=None, description="for shipped models that we made"
    )
    rollouts: RolloutSettings
    endpoint: EndpointSettings | None = Field(
        default=None, description="the server that writes the rollouts, where their source is one"
    )
    published: PublishedSettings | None = Field(
        default=None, description="where the runs' adapters come from, if nothing is trained"
    )
    compute: ComputeSettings = ComputeSettings()
    lora: LoraSettings = Field(description="the adapter that every run trains")
    evaluation: EvaluationSettings
    sampled: SampledSettings | None = None
    connectivity: ConnectivitySettings
    representations: RepresentationSettings
    learning_rates: tuple[float, ...] = Field(
        description="rates tried on SFT with validation problems"
    )
    main_runs: tuple[str, ...]
    controls: dict[str, Controls] = Field(
        default={}, description="the other runs, by what they are for"
    )
    runs: dict[str, Run]
    comes_whole: bool = Field(
        default=False,
        description="whether results/prerun holds the main study too, and not the controls alone",
    )

    @model_validator(mode="after")
    def _names_exist(self) -> "Profile":
        for name in self.main_runs:
            if name not in self.runs:
                raise ValueError(
                    f"main_runs names {name!r}, which is not among the runs {', '.join(self.runs)}"
                )
        for path in self.connectivity.answered_paths:
            if path not in self.paths:
                raise ValueError(
                    f"connectivity.answered_paths names {' to '.join(path)}, which is not one of "
                    "the paths; the order is that of main_runs"
                )
        for run in self.runs.values():
            if run.name in self.models:
                raise ValueError(
                    f"run {run.name!r} has the name of one of the models {', '.join(self.models)}, "
                    "and tables could not tell them apart: give the run another name"
                )
            if run.base not in self.models:
                raise ValueError(
                    f"run {run.name!r} starts from {run.base!r}, which is not among the models "
                    f"{', '.join(self.models)}"
                )
        return self

    def is_elsewhere(self, name: str) -> bool:
        """Whether a model only writes, and can't be loaded: it is behind the profile's server, or
        its rollouts are a file that exists already."""
        source = self.models.get(name, "")
        return source == "endpoint" or source.startswith("file:")

    @property
    def appearance(self) -> Appearance:
        """Labels, colours and markers of the runs and models."""
        return appearance(
            {name: run.objective for name, run in self.runs.items()},
            {name: run.label for name, run in self.runs.items() if run.label},
        )

    @property
    def paths(self) -> list[tuple[str, str]]:
        """All paths between updates as (first, second): every pair of main runs, every run to the
        base, and to DPO at the run's own norm."""
        runs = self.main_runs
        return [
            *((first, second) for index, first in enumerate(runs) for second in runs[index + 1 :]),
            *((run, "base") for run in runs),
            *((run, f"{SCALED}dpo") for run in runs if run != "dpo"),
        ]
