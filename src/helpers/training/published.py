"""Adapters that others trained, in the place of `training`: a profile that names where they lie (`published`) trains nothing.

Stands where `training` stands in the flow of data: each run of such a profile becomes a folder like that of a trained one, with the
adapter copied, so that all that comes after reads it in the same way.
"""

import math
import shutil
import time
from pathlib import Path

import pandas as pd
import torch
from transformers import get_cosine_schedule_with_warmup

from adapter_geometry import storage
from adapter_geometry.adapters import CONFIG, WEIGHTS, fetch, load_update
from helpers import store


def adapter_of(profile, run):
    """Local folder of the adapter that stands for a run; fetched from the hub if it is not here.

    Raises FileNotFoundError, which names the folders that there are, where the profile's `published.folders` leads to none.
    """
    source, inside = profile.published.source, profile.published.folders.get(run.name, run.name)
    folder = Path(source, inside) if Path(source).exists() else fetch(f"{source}/{inside}")
    if not (folder / CONFIG).exists():
        there = sorted(
            path.parent.name for path in fetch(source, [f"*/{CONFIG}"]).glob(f"*/{CONFIG}")
        )
        raise FileNotFoundError(
            f"{source} has no adapter {inside!r} for the run {run.name!r}, but {', '.join(there) or 'none at all'}: "
            f"put the right name under published.folders in src/helpers/profiles/{profile.name}.yaml"
        )
    return folder


def identity(profile, run):
    """Hash of what stands for a run: the adapter's two files and the spec that the profile gives it."""
    files = [adapter_of(profile, run) / name for name in (CONFIG, WEIGHTS)]
    return storage.digest(
        {
            "published": [store.file_digest(file) for file in files],
            "run": run.model_dump(exclude={"name"}),
        }
    )


def adopt(run, source, folder, about):
    """Write an adapter as the run `folder`, with the learning rates that the run's schedule asks for in the place of a history, and its record."""
    load_update(source)  # is it a plain LoRA adapter, whole and finite?
    with storage.whole(folder) as beside:
        (beside / "adapter").mkdir(parents=True)
        for name in (CONFIG, WEIGHTS):
            shutil.copyfile(source / name, beside / "adapter" / name)
        storage.write_frame(
            beside / "history.parquet",
            pd.DataFrame({"step": range(1, run.steps + 1), "learning_rate": planned_rates(run)}),
        )
        (beside / "run.json").write_text(
            store.as_json(
                {
                    **about,
                    "adapter": store.file_digest(beside / "adapter" / WEIGHTS),
                    "spec": run.model_dump(),
                    "date": time.strftime("%Y-%m-%d"),
                    "published": Path(source).name,
                    "minutes": 0.0,
                    "place": store.provenance(),
                }
            )
        )
        store.list_sums(beside)


def planned_rates(run):
    """The learning rate of each step of a run, by its schedule alone."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=run.learning_rate)
    total = run.schedule or run.steps
    schedule, rates = (
        get_cosine_schedule_with_warmup(optimizer, math.ceil(total * run.warmup), total),
        [],
    )
    for _ in range(run.steps):
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
    return rates
