"""The built book and the tiny study's results, read as a reader and as a program would.

Run after `make book`.
"""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from helpers import profiles, store
from helpers.analysis import verdict
from helpers.data import problems, rollouts
from helpers.evaluation import answering, likelihood, statistics
from helpers.models import loading, logprobs
from helpers.training import trainer

pytestmark = pytest.mark.slow
STUDY = profiles.load("tiny")
HTML = store.ROOT / "_build" / "html"
PAGES = sorted((store.ROOT / "notebooks").glob("*.py"))


class Elements(HTMLParser):
    """All start tags of a page with their attributes, and its text."""

    def __init__(self, path):
        super().__init__()
        self.tags, self.text, self.html = [], [], path.read_text()
        self.feed(self.html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def all(self, tag):
        """The attributes of all elements with this tag."""
        return [attributes for name, attributes in self.tags if name == tag]

    @property
    def figures(self):
        """The attributes of all images that the book's own build made."""
        return [image for image in self.all("img") if "_images" in image.get("src", "")]


@pytest.fixture(params=[page.stem for page in PAGES])
def page(request):
    return Elements(HTML / "book" / "notebooks" / f"{request.param}.html")


def test_each_page_can_be_downloaded_as_notebook_and_as_the_file_it_is_made_from():
    for source in PAGES:
        page = Elements(HTML / "book" / "notebooks" / f"{source.stem}.html")
        links = [attributes.get("href") or "" for attributes in page.all("a")]
        for wanted in (
            f"_sources/book/notebooks/{source.stem}.ipynb",
            f"_sources/notebooks/{source.stem}.py",
        ):
            assert any(link.endswith(wanted) for link in links), (
                f"{source.stem} has no link to {wanted}"
            )
            assert (HTML / wanted).exists(), wanted
        assert (HTML / "_sources" / "notebooks" / source.name).read_text() == source.read_text()


def test_no_page_is_heavier_than_three_megabytes(page):
    images = {HTML / "_images" / image["src"].rsplit("/", 1)[-1] for image in page.figures}
    weight = len(page.html.encode()) + sum(path.stat().st_size for path in images)
    assert weight <= 3e6, f"{weight / 1e6:.1f} MB to load before the page is whole"


def test_figures_have_alt_text_and_captions(page):
    assert page.figures, "a page without a figure"
    assert all(len(image.get("alt", "").split()) >= 6 for image in page.figures), (
        "a figure without alt text"
    )
    captions = [span for span in page.all("span") if span.get("class") == "caption-number"]
    assert len(captions) >= len(page.figures), "each figure has a numbered caption"


def test_page_is_readable_offline(page):
    elements = [*page.all("script"), *page.all("img"), *page.all("iframe")]
    elements += [link for link in page.all("link") if link.get("rel") == "stylesheet"]
    addresses = [element.get("src") or element.get("href") or "" for element in elements]
    elsewhere = [each for each in addresses if each.startswith(("http:", "https:", "//"))]
    assert not elsewhere, "the page needs a network"


def test_no_script_holds_up_the_first_paint(page):
    head = page.html.partition("</head>")[0]
    sources = re.findall(r"<script([^>]*\bsrc=[^>]*)>", head)
    waiting = [source for source in sources if "defer" not in source]
    assert len(sources) > 5, "the theme's own, and MathJax"
    assert len(waiting) <= 1, f"read before anything is drawn: {waiting}"


def test_page_shows_no_error_warning_or_progress_bar(page):
    text = "".join(page.text)
    troubles = ("Traceback (most recent", "Warning:", "it/s]", "?, ?step", "nan%", "# Parameters")
    for trouble in troubles:
        assert trouble not in text, f"{trouble!r} on the page"
    assert not re.search(r"\{(eq|numref|cite:\w)\}<code", page.html), "a reference was not resolved"


def test_front_page_shows_the_numbers_of_the_accuracy_table():
    text = " ".join("".join(Elements(HTML / "book" / "intro.html").text).split())
    accuracy = store.read_table("tiny", "accuracy")
    base = accuracy[(accuracy.run == "base") & (accuracy.split == "test")].accuracy.item()
    assert f"{base:.1%}" in text, "the base's accuracy is glued from notebook 09"


def test_accuracy_table_agrees_with_the_records():
    accuracy = store.read_table("tiny", "accuracy")
    assert set(accuracy.run) == {"base", *STUDY.main_runs}, "every table has its base row"
    for row in accuracy.itertuples():
        records = pd.read_parquet(store.results("tiny") / "evaluation" / f"{row.run}.parquet")
        records = records[records.split == row.split]
        counts = len(records), records.correct.sum()
        assert (row.n, row.correct) == counts, f"{row.run} on {row.split}"
        assert (row.low, row.high) == pytest.approx(statistics.wilson(row.correct, row.n)), "Wilson"
    assert (accuracy[accuracy.split == "test"].n == 1319).all(), "as many test problems as GSM8K"


def test_mcnemar_table_has_every_pair_once():
    tests = store.read_table("tiny", "mcnemar")
    for _, group in tests.groupby("split"):
        pairs = {frozenset(pair) for pair in zip(group.run_a, group.run_b, strict=True)}
        assert len(group) == 21 == len(pairs), "seven models make 21 pairs"
        assert (group.p_holm >= group.p).all(), "a correction never makes a p-value smaller"


def test_models_fit_the_purpose_of_the_study():
    accuracy = {
        (name, split): answering.evaluate(STUDY, name).query("split == @split").correct.mean()
        for name in STUDY.models
        for split in ("test", "hard")
    }
    table = rollouts.load_table(STUDY)
    groups = rollouts.group_statistics(table)
    assert 0.75 <= accuracy["base", "test"] <= 0.90, "the base is good but not perfect"
    assert 0.10 <= accuracy["base", "hard"] <= 0.50, "the hard set is neither hopeless nor easy"
    assert accuracy["strong-base", "test"] >= 0.95, "the strong base is near the ceiling"
    assert accuracy["teacher", "test"] >= 0.93, "the teacher knows better than it samples"
    assert 0.75 <= table.reward.mean() <= 0.92, (
        "sampled at temperature 1 the teacher errs now and then"
    )
    assert groups.pass_rate.between(0, 1, inclusive="neither").mean() >= 0.25, (
        "preference pairs need mixed groups"
    )
    assert (groups.distinct_correct >= 2).mean() > 0.5, "correct rollouts of one problem differ"
    files = [path for path in (store.ROOT / "data" / "models").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 24e6, "the shipped models stay small"


def test_shipped_table_is_what_the_teacher_writes():
    chosen = problems.problem_sets(STUDY.problems)["train"][100:116]
    again = rollouts.sample_rollouts(STUDY, chosen)
    stored = rollouts.load_table(STUDY).set_index(["problem_id", "sample_id"])
    same = [
        list(row.completion_ids) == list(stored.loc[(row.problem_id, row.sample_id)].completion_ids)
        for row in again.itertuples()
    ]
    assert np.mean(same) >= 0.9, (
        "only draws within the rounding of a boundary may differ between processors"
    )
    for column, name in (("logp_behaviour", "teacher"), ("logp_base", "base")):
        scored = logprobs.score(
            loading.load_model(STUDY, name),
            list(stored.prompt_ids[:8]),
            list(stored.completion_ids[:8]),
        )
        for scores, expected in zip(scored, stored[column][:8], strict=True):
            np.testing.assert_allclose(
                scores, expected, atol=1e-3, err_msg=f"{column} belongs to the shipped {name}"
            )


def test_runs_of_the_book_were_trained_as_their_specs_say():
    for name in STUDY.main_runs:
        folder = trainer.train(STUDY, STUDY.runs[name])
        record = json.loads((folder / "run.json").read_text())
        assert record["spec"] == json.loads(STUDY.runs[name].model_dump_json()), (
            f"{name} was trained with another spec"
        )
        assert len(pd.read_parquet(folder / "history.parquet")) == STUDY.runs[name].steps, (
            "one row per step"
        )


def test_dpo_starts_at_log_two_and_rates_are_the_papers_ratio():
    history = pd.read_parquet(trainer.train(STUDY, STUDY.runs["dpo"]) / "history.parquet")
    assert history.loss.iloc[0] == pytest.approx(np.log(2), abs=2e-4), (
        "with B = 0 the policy is its reference"
    )
    rates = {STUDY.runs[name].learning_rate for name in STUDY.main_runs if name != "dpo"}
    assert len(rates) == 1, "one learning rate for the five"
    assert STUDY.runs["dpo"].learning_rate == pytest.approx(rates.pop() / 10), (
        "a tenth for DPO, as in the paper"
    )


def test_chosen_rate_is_the_best_of_the_committed_sweep():
    sweep = pd.read_csv(likelihood.sweep_path(STUDY))
    best = sweep.sort_values("validation_loss").learning_rate.iloc[0]
    assert STUDY.runs["sft"].learning_rate == pytest.approx(best), (
        "chosen on validation problems, not by hand"
    )


def test_all_runs_started_from_the_same_frame():
    first_steps = {
        name: load_file(
            trainer.train(STUDY, STUDY.runs[name]) / "adapter" / "adapter_model.safetensors"
        )
        for name in ("sft", "rft")
    }
    key = next(key for key in first_steps["sft"] if "lora_A" in key)
    a, b = (weights[key].double().flatten() for weights in first_steps.values())
    assert float(a @ b / (a.norm() * b.norm())) > 0.5, (
        "independent A's would have a cosine near zero"
    )


def test_geometry_tables_hold_every_pair_and_module():
    runs, layers, projections = set(STUDY.main_runs), 6, len(STUDY.lora.modules)
    cosine, updates, angles, orthogonal = (
        store.read_table("tiny", name) for name in ("cosine", "updates", "angles", "orthogonal")
    )
    counts = cosine.groupby("scope").size()
    assert dict(counts) == {
        "global": 15,
        "layer": 15 * layers,
        "projection": 15 * projections,
        "module": 15 * layers * projections,
    }
    assert set(updates.run) == runs
    assert len(updates) == 6 * (layers * projections + 1), "a row per module and one per run"
    assert (updates.relative_norm > 0).all(), "norms relative to the base's"
    assert len(angles) == 2 * 15 * layers * projections * angles["index"].max(), (
        "both sides, all pairs"
    )
    assert angles.degrees.between(0, 90).all()
    assert (angles.chance_low <= angles.chance_high).all()
    stacked = cosine[cosine.scope == "global"].set_index(["run_a", "run_b"]).cosine
    for row in orthogonal[orthogonal.scope == "global"].itertuples():
        pair = stacked.get((row.run, row.reference), stacked.get((row.reference, row.run)))
        assert row.by_energy == pytest.approx(1 - pair**2) == pytest.approx(row.by_norm**2), (
            "the orthogonal part is a function of the cosine"
        )


def test_paths_end_where_the_runs_are():
    table, barriers = store.read_table("tiny", "connectivity"), store.read_table("tiny", "barriers")
    ends = {}
    for (run_a, run_b, metric), path in table.groupby(["run_a", "run_b", "metric"]):
        path = path.sort_values("t")
        settings = STUDY.connectivity
        points = settings.answered_points if metric == "accuracy" else settings.points
        assert len(path[path.t.between(0, 1)]) == points, f"{run_a} to {run_b}"
        for run, t in ((run_a, 0), (run_b, 1)):
            ends.setdefault((run, metric), []).append(path[path.t == t].value.item())
    for (run, metric), values in ends.items():
        if not run.startswith(profiles.SCALED):
            assert np.ptp(values) < 1e-4, (
                f"one model has one {metric}, whichever path ends at {run}"
            )
    assert (barriers.above_chord >= 0).all()
    assert (barriers.low <= barriers.high).all()
    answered = table[table.metric == "accuracy"]
    paths = set(zip(answered.run_a, answered.run_b, strict=True))
    assert paths == set(STUDY.connectivity.answered_paths)


def test_cka_has_every_pair_with_the_base():
    cka = store.read_table("tiny", "cka")
    assert (cka.groupby("layer").size() == 21).all(), "seven models make 21 pairs"
    assert cka.layer.nunique() == 7, "six layers and the embedding"
    assert cka.debiased.between(-0.1, 1).all(), "a likeness"
    assert (cka[cka.layer == 0].debiased > 0.9999).all(), "all models share the embedding"


def test_verdicts_are_on_the_front_page_and_lie_in_their_intervals():
    claims = store.read_table("tiny", "verdict")
    assert {"claim", "paper", "value", "low", "high", "control", "verdict"} <= set(claims.columns)
    assert claims.claim.is_unique
    assert set(claims.part) == {
        "behaviour",
        "the rate",
        "direction",
        "vectors",
        "size",
        "angles",
        "seeds",
        "paths",
        "representations",
        "on-policy",
        "a second model",
        "untested",
    }, "this profile has the controls of every part"
    tested = claims[claims.verdict != verdict.UNTESTED]
    assert ((tested.low <= tested.value) & (tested.value <= tested.high)).all(), (
        "an interval holds its value"
    )
    text = " ".join("".join(Elements(HTML / "book" / "intro.html").text).split())
    for row in claims.itertuples():
        assert " ".join(row.claim.split()).replace("'", "’") in text.replace("'", "’"), (
            f"{row.claim!r} is missing on the front page"
        )
    assert set(claims.verdict) <= {
        verdict.HOLDS,
        verdict.CHANCE,
        verdict.CONSTRUCTION,
        verdict.FAILS,
        verdict.UNTESTED,
    }


def test_timings_page_lists_every_notebook():
    text = (HTML / "book" / "timings.html").read_text()
    assert len(re.findall(r"notebooks/\d\d_", text)) >= len(PAGES)


def test_the_book_was_built_after_its_notebooks_were_executed():
    built = (HTML / "index.html").stat().st_mtime_ns
    for source in PAGES:
        executed = store.ROOT / "book" / "notebooks" / f"{source.stem}.ipynb"
        assert built > executed.stat().st_mtime_ns, f"an old book: {executed.name} is newer"
