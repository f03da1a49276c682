"""Training: one `transformers.Trainer` that takes any objective, and `train(profile, run)`, which
never trains twice.

Comes after `objectives` and `batches`, before the evaluation. Reads the table of rollouts, writes
`results/<profile>/runs/<run>/`: `adapter/` (a PEFT folder), `history.parquet` (one row per step)
and `run.json` (spec, hashes, versions, minutes).
"""

import contextlib
import functools
import shutil
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from jaxtyping import Float
from peft import PeftModel
from torch import Tensor
from torch.utils.data import SequentialSampler
from tqdm.auto import tqdm
from transformers import (
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
    set_seed,
)

from adapter_geometry import storage
from adapter_geometry.adapters import WEIGHTS, load_update
from adapter_geometry.updates import Update
from helpers import store
from helpers.data import rollouts
from helpers.models import loading, logprobs
from helpers.profiles import LoraSettings, Profile, Run
from helpers.training import batches, objectives, published
from helpers.training.objectives import LossAndWeight, Rows

CHECKPOINTS_PER_RUN = 3
# Of the history; the mean reward of a step exists online only.
_COLUMNS = ("step", "loss", "grad_norm", "learning_rate", "reward")
# Raised whenever training's numbers change by more than rounding: a run under results/prerun is
# served only while its recipe is today's.
RECIPE = 1


# --- the trainer ---------------------------------------------------------------------------------


class ObjectiveTrainer(Trainer):
    """`Trainer` for a loss of per-token log-probabilities, normalised over all micro-batches and
    processes of a step.

    loss: takes log-probabilities, (rows, tokens), and `Rows`, returns sum and weight.
    step_mean: of the same, what the loss needs the mean over a step of (`Objective.step_mean`).

    The model's forward pass returns log-probabilities (`logprobs.token_logprobs`): what runs
    several processes synchronises gradients only for a forward pass of its own.
    """

    def __init__(
        self,
        *,
        model: PeftModel,
        loss: Callable[..., LossAndWeight],
        step_mean: Callable[[Tensor, Rows], Float[Tensor, " rows"]] | None = None,
        **kwargs: Any,
    ) -> None:
        forward = functools.partial(logprobs.token_logprobs, model)
        model.forward = forward  # type: ignore[method-assign]
        super().__init__(model=model, **kwargs)
        self.loss, self.step_mean = loss, step_mean
        self._of_step: dict[str, Tensor] = {}  # what the loss is given besides a micro-batch
        self.loss_is_scaled_for_ga = True  # Trainer does not divide by the number of micro-batches

    def _get_train_sampler(self, train_dataset: Any = None) -> SequentialSampler:
        return SequentialSampler(cast(batches.RunRows, self.train_dataset))

    def get_batch_samples(
        self, epoch_iterator: Iterator[dict[str, Any]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Float[Tensor, ""]]:
        """The micro-batches of a step, and its weight.

        A mean that the loss needs over the step is taken here, under the policy before the step:
        with several micro-batches or processes this costs one more forward pass without gradient
        for each row. With one, the loss sees the whole step itself.
        """
        batch_samples, weight = super().get_batch_samples(epoch_iterator, num_batches, device)
        self._of_step = {}
        if self.step_mean is not None and len(batch_samples) * self.accelerator.num_processes > 1:
            with torch.no_grad():
                values = [
                    self.step_mean(
                        *self._logp_and_rows(self.model_wrapped, self._prepare_inputs(batch))
                    )
                    for batch in batch_samples
                ]
            # (rows,) of all micro-batches and processes
            of_rows = cast(Tensor, self.accelerator.gather(torch.cat(values)))
            self._of_step = {"step_mean": of_rows.mean()}
        return batch_samples, cast(Tensor, weight)

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Any]], device: torch.device
    ) -> Float[Tensor, ""]:
        """Weight of a step: its tokens, completions or pairs. It does not depend on the policy, so
        zeros will do for log-probabilities."""
        weights = [
            self.loss(torch.zeros_like(batch["rows"].mask), batch["rows"])[1]
            for batch in batch_samples
        ]
        weight = torch.stack(weights).sum().to(device)
        return cast(Tensor, self.accelerator.gather(weight).sum())

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Float[Tensor, ""]:
        """The part of the step's loss that comes from one micro-batch of `batches.collate`;
        num_items_in_batch: the step's weight."""
        loss, _ = self.loss(*self._logp_and_rows(model, inputs), **self._of_step)
        # Gradients are averaged over processes, and the loss is a sum over them.
        return cast(Tensor, loss / num_items_in_batch * self.accelerator.num_processes)

    @staticmethod
    def _logp_and_rows(
        model: torch.nn.Module, inputs: dict[str, Any]
    ) -> tuple[Float[Tensor, "rows predicted"], Rows]:
        """What a loss takes of one micro-batch of `batches.collate`."""
        logp = model(inputs["input_ids"], inputs["completion_mask"])
        return logp, inputs["rows"].to(logp.device)


class _Snapshots(TrainerCallback):
    """Keeps the adapter as it is after the given steps."""

    def __init__(self, folder: Path, steps: Iterable[int], lora: LoraSettings) -> None:
        self.folder, self.steps, self.lora = folder, set(steps), lora

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: Any = None,
        **kwargs: Any,
    ) -> None:
        if state.global_step in self.steps and state.is_world_process_zero:
            loading.save_adapter(model, self.folder / f"step-{state.global_step}", self.lora)


class _ChecksumWriter(TrainerCallback):
    """Writes the checksums of a checkpoint when it is finished, without which none is taken up
    again."""

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            folder = Path(str(args.output_dir)) / f"checkpoint-{state.global_step}"
            # Other processes may still write the state of their generators.
            store.write_checksums(
                folder,
                [path for path in folder.iterdir() if not path.name.startswith("rng_state_")],
            )


class _Recorder(TrainerCallback):
    """Stops after the run's steps, where its schedule is longer, and at a loss that is not a
    number; draws the progress bar."""

    def __init__(self, name: str, steps: int) -> None:
        self.bar = tqdm(
            total=steps,
            desc=f"training {name}",
            unit="step",
            disable=not processes().is_main_process,
        )

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar.update(state.global_step)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar.update()
        control.should_training_stop |= state.global_step >= self.bar.total

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        train_dataloader: Any = None,
        **kwargs: Any,
    ) -> None:
        if logs is None or "loss" not in logs:  # the summary at the end
            return
        if not np.isfinite(logs["loss"]) or not np.isfinite(logs["grad_norm"]):
            items = getattr(train_dataloader.dataset, "items", [])  # online there are no rows
            size = (
                args.train_batch_size * args.gradient_accumulation_steps * args.world_size
            )  # items per step
            step_items = items[(state.global_step - 1) * size : state.global_step * size]
            numbers = ", ".join(str(number) for item in step_items for number in item)
            # The last line of the history is this step's, whose loss was taken before its update;
            # the first steps of a warm-up may have the rate 0.
            has_moved = any(line.get("learning_rate", 0) > 0 for line in state.log_history[:-1])
            raise FloatingPointError(
                f"{self.bar.desc}: loss {logs['loss']}, norm of the gradient {logs['grad_norm']} "
                f"at step {state.global_step}, "
                f"of {f'rows {numbers} of the table of' if numbers else 'its own'} rollouts"
                + (
                    "; the last checkpoint is kept. Lower the learning rate."
                    if has_moved
                    else ", before any update, so that the learning rate is not the cause: look at "
                    "the base model, at the log-probabilities of these rollouts and at the options "
                    "of the objective."
                )
            )
        self.bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.bar.close()


# --- runs ----------------------------------------------------------------------------------------


def processes() -> PartialState:
    """The processes that train together, this one among them: one, unless `torchrun` or
    `accelerate launch` started several."""
    return PartialState(cpu=not torch.cuda.is_available())


def identity(profile: Profile, run: Run) -> str:
    """Hash of all that determines a run's adapter, with the recipe's number in place of the code:
    spec, adapter settings, base model, table."""
    if profile.published:
        return published.identity(profile, run)
    dtype = profile.compute.dtype
    return storage.digest(
        {
            "run": run.model_dump(exclude={"name"}),
            "lora": profile.lora.model_dump(exclude_defaults=True),
            # Not named where it is float32: identities are older than the choice.
            **({} if dtype == "float32" else {"dtype": dtype}),
            "base": loading.model_digest(profile.name, run.base),
            "table": store.file_digest(rollouts.table_path(profile, run.writer)),
            "recipe": RECIPE,
        }
    )


def fingerprint(profile: Profile, run: Run) -> str:
    """Hash of all that determines a run's adapter: its `identity`, the code and the libraries."""
    return storage.digest(
        {"identity": identity(profile, run), "code": store.code_digest("helpers.training.trainer")}
    )


def run_folder(profile: Profile, run: Run) -> Path:
    """Where the run lives, whether or not it was trained yet; an edited spec gets a folder of its
    own."""
    return store.entry(
        store.results(profile.name) / "runs",
        run.name,
        fingerprint(profile, run),
        in_profile=profile.runs.get(run.name) == run,
    )


def train(profile: Profile, run: Run) -> Path:
    """Folder of the finished run, with `adapter/`, `history.parquet`, `run.json`, and
    `snapshots/step-N/` where the run keeps some.

    Returns at once when the store holds a run of the same spec, data and code, or results/prerun
    one of the same spec, data and recipe; goes on from the last checkpoint of an interrupted one;
    takes the adapter that was `published`; trains otherwise. Started in several `processes`, each
    takes its share of a step's rows, the update is that of one process, and the first process
    writes.

    Raises ValueError for options that the objective does not have, for rollouts whose writer's
    log-probabilities it needs and nobody knows (`batches.rows_of`), for a batch that the processes
    do not divide and for a damaged run, FileNotFoundError without a table of rollouts,
    FloatingPointError at a loss that is not a number.
    """
    if not profile.published and run.objective not in objectives.ONLINE:
        objectives.check_options(run.objective, run.options)
        rollouts.require_table(profile, run.writer)
    # One process moves folders of other specs aside; the others see what it leaves.
    with processes().main_process_first():
        folder, run_fingerprint = run_folder(profile, run), fingerprint(profile, run)
    if store.is_finished(folder, run_fingerprint):
        return _checked(folder)
    shipped, run_identity = store.shipped(profile.name) / "runs" / run.name, identity(profile, run)
    if store.identity_of(shipped) == run_identity:
        return _checked(shipped)
    record: dict[str, Any] = {"fingerprint": run_fingerprint, "identity": run_identity}
    if profile.published:
        published.write_run(run, published.adapter_folder(profile, run), folder, record)
        return folder
    torch.set_num_threads(run.threads)
    checkpoints = store.results(profile.name) / "checkpoints" / run_fingerprint
    is_main = processes().is_main_process
    with store.lock(run_fingerprint) if is_main else contextlib.nullcontext():
        # By the process that this one waited for.
        if processes().num_processes == 1 and store.is_finished(folder, run_fingerprint):
            return folder
        start = time.monotonic()
        trainer, about_rows = _trainer(profile, run, checkpoints)
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=_last_checkpoint(checkpoints))
        if trainer.is_world_process_zero():
            minutes = round((time.monotonic() - start) / 60, 2)
            record = {**record, **about_rows, "minutes": minutes}
            _write(profile, run, folder, checkpoints, trainer, record)
        trainer.accelerator.wait_for_everyone()
    return folder


def _write(
    profile: Profile,
    run: Run,
    folder: Path,
    checkpoints: Path,
    trainer: Trainer,
    record: dict[str, Any],
) -> None:
    """Put a finished run into its folder, and remove its checkpoints."""
    history = pd.DataFrame([line for line in trainer.state.log_history if "loss" in line])
    columns = [column for column in _COLUMNS if column in history]
    with storage.whole(folder) as temporary_folder:
        adapter = temporary_folder / "adapter"
        loading.save_adapter(cast(PeftModel, trainer.model), adapter, profile.lora)
        if (checkpoints / "snapshots").exists():
            shutil.copytree(checkpoints / "snapshots", temporary_folder / "snapshots")
        storage.write_frame(temporary_folder / "history.parquet", history[columns])
        record = {
            **record,
            "adapter": store.file_digest(adapter / WEIGHTS),
            "spec": run.model_dump(),
            "date": time.strftime("%Y-%m-%d"),
            "table": store.file_digest(rollouts.table_path(profile, run.writer)),
            "base": loading.model_digest(profile.name, run.base),
            "place": store.provenance(),
        }
        (temporary_folder / "run.json").write_text(store.as_json(record))
        store.write_checksums(temporary_folder)
    storage.remove(checkpoints)


def _trainer(profile: Profile, run: Run, checkpoints: Path) -> tuple[Trainer, dict[str, Any]]:
    """The trainer of a run, ready to start, and what its record says of its rows."""
    settings = _settings(profile, run, checkpoints)
    callbacks: list[TrainerCallback] = [
        _Recorder(run.name, run.steps),
        _ChecksumWriter(),
        _Snapshots(checkpoints / "snapshots", run.snapshots, profile.lora),
    ]
    set_seed(run.seed)
    base = loading.load_model(profile, run.base, profile.compute.attention)
    if run.objective in objectives.ONLINE:
        # TRL takes seconds to import, and no other run needs it.
        from helpers.training import online

        model = loading.attach_adapter(base, profile.lora, run.init_seed, run.zero)
        return online.trainer(profile, run, model, settings, callbacks), {}
    objective = objectives.objective(run.objective)
    table = rollouts.with_group_columns(rollouts.load_table(profile, run.writer))
    row_numbers = batches.rows_of(table, run)
    order = batches.run_order(table, row_numbers, run, run.steps)
    if objective.rows == "pairs" and run.base != "base":
        # The table holds log-probabilities of the base; this run's reference is another model.
        used = sorted(set(order))
        prompts, completions = table.prompt_ids.iloc[used], table.completion_ids.iloc[used]
        reference = logprobs.score(base, list(prompts), list(completions))
        table.loc[table.index[used], "logp_base"] = pd.Series(reference, index=table.index[used])
    arguments = TrainingArguments(**settings)
    # Several GPUs are for several processes; torch's DataParallel would multiply the batch.
    arguments._n_gpu = min(1, arguments.n_gpu)
    trainer = ObjectiveTrainer(
        model=loading.attach_adapter(base, profile.lora, run.init_seed, run.zero),
        args=arguments,
        callbacks=callbacks,
        train_dataset=batches.RunRows(order, batches.rows_per_unit(run)),
        data_collator=lambda items: batches.collate(
            table, [number for item in items for number in item]
        ),
        loss=functools.partial(objective.loss, **run.options),
        step_mean=objective.step_mean,
    )
    numbers = [number for of_prompt in row_numbers.values() for number in of_prompt]
    return trainer, {"rows": len(set(numbers)), "passes": len(order) / len(numbers)}


def _settings(profile: Profile, run: Run, checkpoints: Path) -> dict[str, Any]:
    """The arguments of transformers' `TrainingArguments`, which TRL's extend.

    Raises ValueError for a batch that the processes and the accumulation do not divide.
    """
    count = processes().num_processes
    if run.batch_size % (run.accumulation * count):
        raise ValueError(
            f"run {run.name!r}: {count} processes with accumulation {run.accumulation} "
            f"do not divide batch_size {run.batch_size}"
        )
    return {
        "output_dir": checkpoints,
        "max_steps": run.schedule or run.steps,
        "per_device_train_batch_size": run.batch_size // (run.accumulation * count),
        "gradient_accumulation_steps": run.accumulation,
        "learning_rate": run.learning_rate,
        "lr_scheduler_type": "cosine",
        "warmup_steps": run.warmup,
        "weight_decay": run.weight_decay,
        "max_grad_norm": run.clip,
        "seed": run.seed,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_steps": max(1, run.steps // CHECKPOINTS_PER_RUN),
        "save_total_limit": 1,
        "remove_unused_columns": False,
        "disable_tqdm": True,
        "report_to": [],
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": False,
        "bf16": profile.compute.dtype == "bfloat16",
        "activation_checkpointing": profile.compute.checkpoints_layers,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
        "ddp_find_unused_parameters": False,
    }


def _checked(folder: Path) -> Path:
    """The folder of a finished run, if all its files are those that were written, and its adapter
    the one that its record describes."""
    adapter = store.verify_checksums(folder) / "adapter" / WEIGHTS
    if store.file_digest(adapter) != store.read_json(folder / "run.json")["adapter"]:
        raise ValueError(
            f"{store.relative_path(adapter)} is not the adapter that {folder.name}/run.json "
            "describes: put the right one back, "
            f"or delete {store.relative_path(folder)} to have it made again"
        )
    return folder


def _last_checkpoint(checkpoints: Path) -> str | None:
    """The newest checkpoint that was written to its end and is as it was written, if any."""
    for folder in sorted(
        checkpoints.glob("checkpoint-*"), key=lambda folder: -int(folder.name.split("-")[1])
    ):
        try:
            if (folder / store.CHECKSUMS).exists():
                return str(store.verify_checksums(folder))
        except ValueError as error:
            warnings.warn(f"{error}. Training goes on without it", stacklevel=2)
            # Trainer, which keeps the one with the highest number, would remove its own for it.
            storage.remove(folder)
    return None


def update_of(profile: Profile, name: str) -> Update:
    """The update of the run called `name`, which is trained if it is not stored yet."""
    return load_update(train(profile, profile.runs[name]) / "adapter")


def updates_of_study(profile_name: str, runs: Iterable[str]) -> dict[str, Update]:
    """{run: its update} for named runs of a study, as they came with the book or were trained
    before; nothing is trained."""
    updates = {}
    for run in runs:
        folder = store.find(profile_name, f"runs/{run}/run.json").parent
        updates[run] = load_update(store.verify_checksums(folder) / "adapter")
    return updates
