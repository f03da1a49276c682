"""Adapters that others trained: a profile that names where they are (`published`) trains nothing.

In the place of training in the flow of data: each run of such a profile becomes a folder like that
of a trained one, with the adapter copied, so that all that comes after reads it in the same way.
"""

import math
import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import get_cosine_schedule_with_warmup

from adapter_geometry import storage
from adapter_geometry.adapters import CONFIG, WEIGHTS, load_update
from adapter_geometry.sources import fetch
from helpers import store
from helpers.profiles import Profile, Run


def adapter_folder(profile: Profile, run: Run) -> Path:
    """Local folder of the adapter that stands for a run; fetched from the hub if it is not here.

    Raises FileNotFoundError, which names the folders that there are, where the profile's
    `published.folders` leads to none.
    """
    assert profile.published is not None, f"{profile.name} trains its runs itself"
    source, name = profile.published.source, profile.published.folders.get(run.name, run.name)
    folder = Path(source, name) if Path(source).exists() else fetch(f"{source}/{name}")
    if not (folder / CONFIG).exists():
        configurations = fetch(source, [f"*/{CONFIG}"]).glob(f"*/{CONFIG}")
        names = ", ".join(sorted(path.parent.name for path in configurations))
        raise FileNotFoundError(
            f"{source} has no adapter {name!r} for the run {run.name!r}, "
            f"but {names or 'none at all'}: put the right name under published.folders "
            f"in src/helpers/profiles/{profile.name}.yaml"
        )
    return folder


def identity(profile: Profile, run: Run) -> str:
    """Hash of what stands for a run: the adapter's two files and the spec that the profile gives
    it."""
    folder = adapter_folder(profile, run)
    return storage.digest(
        {
            "published": [store.file_digest(folder / name) for name in (CONFIG, WEIGHTS)],
            "run": run.model_dump(exclude={"name"}),
        }
    )


def write_run(run: Run, adapter: Path, folder: Path, record: dict[str, Any]) -> None:
    """Write an adapter as the folder of a run: the adapter, the learning rates that the run's
    schedule asks for in the place of a history, and `record` with what is known of it."""
    load_update(adapter)  # is it a plain LoRA adapter, whole and finite?
    with storage.whole(folder) as temporary_folder:
        copied = temporary_folder / "adapter"
        copied.mkdir(parents=True)
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(adapter / name, copied / name)
        steps = range(1, run.steps + 1)
        storage.write_frame(
            temporary_folder / "history.parquet",
            pd.DataFrame({"step": steps, "learning_rate": planned_rates(run)}),
        )
        record = {
            **record,
            "adapter": store.file_digest(copied / WEIGHTS),
            "spec": run.model_dump(),
            "date": time.strftime("%Y-%m-%d"),
            "published": adapter.name,
            "minutes": 0.0,
            "place": store.provenance(),
        }
        (temporary_folder / "run.json").write_text(store.as_json(record))
        store.write_checksums(temporary_folder)


def planned_rates(run: Run) -> list[float]:
    """The learning rate of each step of a run, by its schedule alone."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=run.learning_rate)
    total = run.schedule or run.steps
    schedule = get_cosine_schedule_with_warmup(optimizer, math.ceil(total * run.warmup), total)
    rates = []
    for _ in range(run.steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates
