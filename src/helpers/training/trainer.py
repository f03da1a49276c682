"""Training: one `transformers.Trainer` that takes any objective, and `train(profile, run)`, which never trains twice.

Comes after `objectives`, before `evaluation`. Reads the table of rollouts, writes `results/<profile>/runs/<run>/`:
`adapter/` (a PEFT folder), `history.parquet` (one row a step) and `run.json` (spec, hashes, versions, minutes).
"""

import contextlib
import functools
import shutil
import time
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from torch.utils.data import SequentialSampler
from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments, set_seed

from adapter_geometry import storage
from adapter_geometry.adapters import load_update
from helpers import store
from helpers.data import rollouts
from helpers.models import loading, logprobs
from helpers.training import batches, objectives, published

CHECKPOINTS_A_RUN = 3
_HISTORY = (
    "step",
    "loss",
    "grad_norm",
    "learning_rate",
    "reward",
)  # the mean reward of a step exists online only
RECIPE = 1  # raised whenever training's numbers change by more than rounding: a run under results/prerun is served only while its recipe is today's


# --- the trainer ---------------------------------------------------------------------------------------------------


class ObjectiveTrainer(Trainer):
    """`Trainer` for a loss of per-token log-probabilities, normalised over all micro-batches and processes of a step.

    The model's forward pass returns them (`models.token_logprobs`): what runs several processes synchronises gradients only for a forward pass of its own.
    """

    def __init__(self, *args, model, loss, **kwargs):
        model.forward = functools.partial(logprobs.token_logprobs, model)
        super().__init__(*args, model=model, **kwargs)
        self.loss = loss
        self.loss_is_scaled_for_ga = True

    def _get_train_sampler(self, train_dataset=None):
        return SequentialSampler(self.train_dataset)

    def _get_num_items_in_batch(self, batch_samples, device):
        """Weight of a step: its tokens, completions or pairs. It does not depend on the policy, so zeros will do."""
        weights = [
            self.loss(torch.zeros_like(batch["rows"].mask), batch["rows"])[1]
            for batch in batch_samples
        ]
        return self.accelerator.gather(torch.stack(weights).sum().to(device)).sum()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        logp = model(inputs["input_ids"], inputs["completion_mask"])
        loss, _ = self.loss(logp, inputs["rows"].to(logp.device))
        return loss / num_items_in_batch * self.accelerator.num_processes


class _Snapshots(TrainerCallback):
    """Keeps the adapter as it is after the given steps."""

    def __init__(self, folder, steps, lora):
        self.folder, self.steps, self.lora = folder, steps, lora

    def on_step_end(self, args, state, control, model=None, **kwargs):
        if state.global_step in self.steps and state.is_world_process_zero:
            loading.save_adapter(model, self.folder / f"step-{state.global_step}", self.lora)


class _Sealer(TrainerCallback):
    """Writes the checksums of a checkpoint when it is finished, without which none is taken up again."""

    def on_save(self, args, state, control, **kwargs):
        if state.is_world_process_zero:
            folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
            store.list_sums(
                folder,
                [path for path in folder.iterdir() if not path.name.startswith("rng_state_")],
            )  # other processes may still write theirs


class _Recorder(TrainerCallback):
    """Stops after the run's steps, where its schedule is longer, and at a loss that is not a number; draws the progress bar."""

    def __init__(self, name, steps):
        self.bar = tqdm(
            total=steps,
            desc=f"training {name}",
            unit="step",
            disable=not processes().is_main_process,
        )

    def on_train_begin(self, args, state, control, **kwargs):
        self.bar.update(state.global_step)

    def on_step_end(self, args, state, control, **kwargs):
        self.bar.update()
        control.should_training_stop |= state.global_step >= self.bar.total

    def on_log(self, args, state, control, logs=None, train_dataloader=None, **kwargs):
        if "loss" not in logs:
            return
        if not np.isfinite(logs["loss"]) or not np.isfinite(logs["grad_norm"]):
            rows, size = (
                getattr(train_dataloader.dataset, "items", []),
                args.train_batch_size * args.gradient_accumulation_steps * args.world_size,
            )
            batch = [
                str(number)
                for item in rows[(state.global_step - 1) * size : state.global_step * size]
                for number in item
            ]
            raise FloatingPointError(
                f"{self.bar.desc}: loss {logs['loss']} at step {state.global_step}, of rows {', '.join(batch) or 'of its own'} "
                "of the table of rollouts; the last checkpoint is kept. Lower the learning rate."
            )
        self.bar.set_postfix(loss=f"{logs['loss']:.4f}", refresh=False)

    def on_train_end(self, args, state, control, **kwargs):
        self.bar.close()


# --- runs ----------------------------------------------------------------------------------------------------------


def processes():
    """The processes that train together, this one among them: one, unless `torchrun` or `accelerate launch` started several."""
    return PartialState(cpu=not torch.cuda.is_available())


def identity(profile, run):
    """Hash of all that determines a run's adapter, with the recipe's number in place of the code: spec, adapter settings, base model, table."""
    if profile.published:
        return published.identity(profile, run)
    spec, lora = run.model_dump(exclude={"name"}), profile.lora.model_dump(exclude_defaults=True)
    precision = {} if profile.compute.dtype == "float32" else {"dtype": profile.compute.dtype}
    return storage.digest(
        {
            "run": spec,
            "lora": lora,
            **precision,
            "base": loading.model_digest(profile.name, run.base),
            "table": store.file_digest(rollouts.table_path(profile, run.writer)),
            "recipe": RECIPE,
        }
    )


def fingerprint(profile, run):
    """Hash of all that determines a run's adapter: its `identity`, the code and the libraries."""
    return storage.digest(
        {"identity": identity(profile, run), "code": store.code_digest("helpers.training.trainer")}
    )


def run_folder(profile, run):
    """Where the run lives, whether or not it was trained yet; an edited spec gets a folder of its own."""
    return store.entry(
        store.results(profile.name) / "runs",
        run.name,
        fingerprint(profile, run),
        is_ours=profile.runs.get(run.name) == run,
    )


def train(profile, run):
    """Folder of the finished run, with `adapter/`, `history.parquet`, `run.json`, and `snapshots/step-N/` where the run keeps some.

    Returns at once when the store holds a run of the same spec, data and code, or results/prerun one of the same spec, data and
    recipe; goes on from the last checkpoint of an interrupted one; takes the adapter that was `published`; trains otherwise. Started in
    several `processes`, each takes its share of a step's rows, the update is that of one process, and the first process writes.
    """
    if not profile.published and run.objective not in objectives.ONLINE:
        objectives.check_options(run.objective, run.options)
        rollouts.require_table(profile, run.writer)
    with processes().main_process_first():
        folder, mark = run_folder(profile, run), fingerprint(profile, run)
    if store.is_finished(folder, mark):
        return _checked(folder)
    shipped, own = store.shipped(profile.name) / "runs" / run.name, identity(profile, run)
    if store.identity_of(shipped) == own:
        return _checked(shipped)
    if profile.published:
        published.adopt(
            run, published.adapter_of(profile, run), folder, {"fingerprint": mark, "identity": own}
        )
        return folder
    torch.set_num_threads(run.threads)
    work = store.results(profile.name) / "checkpoints" / mark
    with store.alone(mark) if processes().is_main_process else contextlib.nullcontext():
        if processes().num_processes == 1 and store.is_finished(
            folder, mark
        ):  # by the process that this one waited for
            return folder
        started = time.monotonic()
        trainer, about = _trainer(profile, run, work)
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=_last_checkpoint(work))
        if trainer.is_world_process_zero():
            _write(
                profile,
                run,
                folder,
                work,
                trainer,
                {
                    "fingerprint": mark,
                    "identity": own,
                    **about,
                    "minutes": round((time.monotonic() - started) / 60, 2),
                },
            )
        trainer.accelerator.wait_for_everyone()
    return folder


def _write(profile, run, folder, work, trainer, about):
    """Put a finished run into its folder, and remove what it leaves behind."""
    history = pd.DataFrame([line for line in trainer.state.log_history if "loss" in line])
    with storage.whole(folder) as beside:
        loading.save_adapter(trainer.model, beside / "adapter", profile.lora)
        if (work / "snapshots").exists():
            shutil.copytree(work / "snapshots", beside / "snapshots")
        storage.write_frame(
            beside / "history.parquet",
            history[[column for column in _HISTORY if column in history]],
        )
        (beside / "run.json").write_text(
            store.as_json(
                {
                    **about,
                    "adapter": store.file_digest(beside / "adapter" / "adapter_model.safetensors"),
                    "spec": run.model_dump(),
                    "date": time.strftime("%Y-%m-%d"),
                    "table": store.file_digest(rollouts.table_path(profile, run.writer)),
                    "base": loading.model_digest(profile.name, run.base),
                    "place": store.provenance(),
                }
            )
        )
        store.list_sums(beside)
    storage.remove(work)


def _trainer(profile, run, work):
    """The trainer of a run, ready to start, and what its record says of its rows."""
    count = processes().num_processes
    if run.batch_size % (run.accumulation * count):
        raise ValueError(
            f"run {run.name!r}: {count} processes with accumulation {run.accumulation} do not divide batch_size {run.batch_size}"
        )
    settings = {
        "output_dir": work,
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
        "save_steps": max(1, run.steps // CHECKPOINTS_A_RUN),
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
    callbacks = [
        _Recorder(run.name, run.steps),
        _Sealer(),
        _Snapshots(work / "snapshots", run.snapshots, profile.lora),
    ]
    set_seed(run.seed)
    base = loading.load_model(profile, run.base, profile.compute.attention)
    if run.objective in objectives.ONLINE:
        from helpers.training import (
            online,  # TRL takes seconds to import, and no other run needs it
        )

        model = loading.attach_adapter(base, profile.lora, run.init_seed, run.zero)
        return online.trainer(profile, run, model, settings, callbacks), {}
    objective = objectives.objective(run.objective)
    table = rollouts.with_group_columns(rollouts.load_table(profile, run.writer))
    taken = batches.rows_of(table, run)
    order = batches.run_order(table, taken, run, run.steps)
    if objective.rows == "pairs" and run.base != "base":
        used = sorted(set(order))
        scored = logprobs.score(
            base, list(table.prompt_ids.iloc[used]), list(table.completion_ids.iloc[used])
        )
        table.loc[table.index[used], "logp_base"] = pd.Series(scored, index=table.index[used])
    arguments = TrainingArguments(**settings)
    arguments._n_gpu = min(
        1, arguments.n_gpu
    )  # several GPUs are for several processes; torch's DataParallel would multiply the batch
    trainer = ObjectiveTrainer(
        model=loading.attach_adapter(base, profile.lora, run.init_seed, run.zero),
        args=arguments,
        callbacks=callbacks,
        train_dataset=batches.RunRows(order, batches.rows_a_unit(run)),
        data_collator=lambda items: batches.collate(
            table, [number for item in items for number in item]
        ),
        loss=lambda logp, rows: objective.loss(logp, rows, **run.options),
    )
    numbers = [number for of_prompt in taken.values() for number in of_prompt]
    return trainer, {"rows": len(set(numbers)), "passes": len(order) / len(numbers)}


def _checked(folder):
    """The folder of a finished run, if all its files are those that were written, and its adapter the one that its record describes."""
    adapter = store.intact(folder) / "adapter" / "adapter_model.safetensors"
    if store.file_digest(adapter) != store.read_json(folder / "run.json")["adapter"]:
        raise ValueError(
            f"{store.shown(adapter)} is not the adapter that {folder.name}/run.json describes: "
            f"put the right one back, or delete {store.shown(folder)} to have it made again"
        )
    return folder


def _last_checkpoint(work):
    """The newest checkpoint that was written to its end and is as it was written, if any."""
    for folder in sorted(
        work.glob("checkpoint-*"), key=lambda folder: -int(folder.name.split("-")[1])
    ):
        try:
            if (folder / store.SUMS).exists():
                return str(store.intact(folder))
        except ValueError as error:
            warnings.warn(f"{error}. Training goes on without it", stacklevel=2)
            storage.remove(
                folder
            )  # Trainer, which keeps the one with the highest number, would remove its own for it
    return None


def updates_of_study(profile_name, runs):
    """{run: its update} for named runs of a study, as they came with the book or were trained before; nothing is trained."""
    return {
        run: load_update(
            store.intact(store.find(profile_name, f"runs/{run}/run.json").parent) / "adapter"
        )
        for run in runs
    }
