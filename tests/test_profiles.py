"""`model_copy`, the way to change a run or a profile: as strict as a profile's file."""

import pytest
from pydantic import BaseModel

from helpers import profiles


@pytest.fixture
def run(smoke):
    return smoke.runs["dpo"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"learning_rte": 1e-9}, "Run 'dpo' has no field 'learning_rte': it has name, .*learning_"),
        ({"zero": "C"}, r"Run 'dpo': zero: Input should be 'A' or 'B' \(found 'C'\)"),
        ({"clip": 0.0}, r"Run 'dpo': clip: .* greater than 0 \(found 0.0\)"),
        ({"learning_rate": float("nan")}, r"Run 'dpo': learning_rate: .*\(found nan\)"),
        ({"warmup": 1.5}, r"Run 'dpo': warmup: .* less than 1 \(found 1.5\)"),
        ({"steps": "many"}, r"Run 'dpo': steps: .* valid integer.* \(found 'many'\)"),
        ({"steps": 3, "schedule": 2}, "Run 'dpo': a schedule of 2 steps ends before training does"),
        ({"accumulation": 3}, "Run 'dpo': accumulation 3 does not divide batch_size 4"),
    ],
)
def test_a_change_that_a_profile_would_refuse_is_refused_by_name(run, change, message):
    with pytest.raises(ValueError, match=f"^{message}") as caught:
        run.model_copy(update=change)
    assert "\n" not in str(caught.value), "one line, not a validation report"


def test_every_class_of_settings_is_checked(smoke):
    with pytest.raises(ValueError, match=r"^LoraSettings: rank: .* \(found 0\)"):
        smoke.lora.model_copy(update={"rank": 0})
    with pytest.raises(ValueError, match=r"^Profile 'smoke': lora.rank: .* \(found 0\)"):
        smoke.model_copy(update={"lora": {**smoke.lora.model_dump(), "rank": 0}})
    with pytest.raises(ValueError, match=r"^Profile 'smoke': main_runs names 'ppo'"):
        smoke.model_copy(update={"main_runs": ("sft", "ppo")})
    with pytest.raises(ValueError, match=r"^Profile 'smoke': problems: .* \(found 'many'\)"):
        smoke.model_copy(update={"problems": "many"})


def test_values_are_converted_as_those_of_a_file(run):
    copy = run.model_copy(update={"learning_rate": 1, "steps": "4", "snapshots": [1, 3]})
    assert (copy.learning_rate, copy.steps, copy.snapshots) == (1.0, 4, (1, 3))
    assert isinstance(copy.learning_rate, float)


@pytest.mark.parametrize("name", profiles.names())
def test_a_copy_with_equal_values_is_equal_and_written_alike(name):
    """A run's folder and identity depend on it."""

    def same(settings: BaseModel, **changes):
        for update in (None, changes):
            for deep in (False, True):
                copy = settings.model_copy(update=update, deep=deep)
                assert copy == settings, f"{name}: equal values, equal settings"
                assert copy.model_dump_json() == settings.model_dump_json(), "what is hashed"
                assert copy.model_fields_set <= settings.model_fields_set | changes.keys(), (
                    "what was not set stays a default"
                )

    profile = profiles.load(name)
    same(profile, name=profile.name)
    same(profile.lora, rank=profile.lora.rank)
    for run in profile.runs.values():
        same(run, name=run.name, snapshots=list(run.snapshots))
        assert run.model_copy(update={"seed": 0}).label == run.label, "labels are copied too"


def test_a_deep_copy_shares_nothing_that_can_be_changed(smoke):
    run = smoke.runs["rift-naive"].model_copy(update={"options": {"negative_reward": -0.5}})
    for copy in (run.model_copy(deep=True), run.model_copy(update={"seed": 1}, deep=True)):
        copy.options["negative_reward"] = -1.0
    assert run.options == {"negative_reward": -0.5}
