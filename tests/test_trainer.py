"""Training: invariances, a plain PyTorch loop as oracle, and a store that never trains twice, loses
or mixes anything."""

import itertools
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from adapter_geometry import storage
from helpers import profiles, store
from helpers.data import rollouts
from helpers.models import loading, logprobs
from helpers.training import batches, objectives, trainer
from helpers.training.batches import collate, row_order


def weights(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def content(folder):
    """{file: bytes} of a finished run."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def assert_same_adapter(adapter, expected, why, **tolerance):
    assert adapter.keys() == expected.keys(), "the same modules carry an adapter"
    for name, weight in expected.items():
        torch.testing.assert_close(
            adapter[name],
            weight,
            **tolerance or {"rtol": 0, "atol": 0},
            msg=lambda text, name=name: f"{why}: {name}\n{text}",
        )


def edited(smoke, name, **changes):
    return profiles.run(smoke, name).model_copy(update=changes)


@pytest.fixture
def never_train(monkeypatch):
    """From here on training is an error."""

    def forbid():
        def refuse(*_, **__):
            raise AssertionError("a finished run must not be trained again")

        monkeypatch.setattr(trainer.ObjectiveTrainer, "train", refuse)

    return forbid


@pytest.fixture
def seen(monkeypatch):
    """Lists the table rows of each micro-batch that training collates."""
    seen_rows, collate = [], batches.collate

    def listen(table, numbers, *rest):
        seen_rows.append(list(numbers))
        return collate(table, numbers, *rest)

    monkeypatch.setattr(batches, "collate", listen)
    return seen_rows


# --- numbers -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "divided"), [("sft", (2, 4)), ("topr", (2,)), ("dpo", (4,))])
def test_accumulation_changes_nothing(name, divided, table, smoke):
    def trained(accumulation):
        run = edited(smoke, "sft", objective=name, accumulation=accumulation)
        folder = trainer.train(smoke, run)
        return weights(folder), pd.read_parquet(folder / "history.parquet")

    adapter, history = trained(1)
    for accumulation in divided:
        again, again_history = trained(accumulation)
        why = f"{name} in {accumulation} micro-batches"
        assert_same_adapter(again, adapter, why, rtol=1e-4, atol=2e-6)
        for column in ("loss", "grad_norm"):
            np.testing.assert_allclose(
                again_history[column],
                history[column],
                rtol=1e-4,
                err_msg=f"{column} is that of the whole step",
            )


def test_ktos_baseline_is_that_of_the_whole_step(table, smoke, monkeypatch):
    def losses(accumulation):
        changes = {"steps": 6, "learning_rate": 1e-2, "accumulation": accumulation}
        run = edited(smoke, "kto", rows="all", **changes)  # whose gains have a mean above 0
        history = pd.read_parquet(trainer.train(smoke, run) / "history.parquet")
        storage.remove(store.results("smoke") / "runs")
        return history.loss

    whole = losses(1)
    for accumulation in (2, 4):
        np.testing.assert_allclose(
            losses(accumulation), whole, rtol=1e-4, err_msg=f"{accumulation} micro-batches"
        )
    of_parts = objectives.Objective(objectives.kto, "pairs", "a test")
    monkeypatch.setitem(objectives.OBJECTIVES, "kto", of_parts)
    assert (losses(1) == whole).all(), "one micro-batch is the whole step, to the last bit"
    assert (losses(2) - whole).abs().max() > 1e-3, (
        "a baseline for each micro-batch must differ, or nothing was compared"
    )


def test_padding_changes_nothing(table, smoke):
    model = loading.attach_adapter(loading.load_model(smoke), smoke.lora, 1)
    short, long = sorted(
        range(len(table)), key=lambda row: len(table.prompt_ids[row]) + table.tokens[row]
    )[:: len(table) - 1]
    alone, together = collate(table, [short]), collate(table, [short, long])
    width = alone["rows"].mask.shape[1]
    assert together["rows"].mask.shape[1] > width, "the long row must add columns of padding"
    for field in ("mask", "behaviour", "reference"):
        one, two = getattr(alone["rows"], field)[0], getattr(together["rows"], field)[0]
        torch.testing.assert_close(
            two[:width],
            one,
            rtol=0,
            atol=0,
            msg=f"{field} of a row does not depend on its neighbours",
        )
        assert (two[width:] == 0).all(), f"{field} is 0 on padding"
    logp = [
        logprobs.token_logprobs(model, batch["input_ids"], batch["completion_mask"])[0]
        for batch in (alone, together)
    ]
    torch.testing.assert_close(
        logp[1][:width],
        logp[0],
        rtol=1e-5,
        atol=1e-5,
        msg="log-probabilities of a row do not depend on padding",
    )
    other_pad = collate(table, [short, long], pad_id=5)
    again = logprobs.token_logprobs(model, other_pad["input_ids"], other_pad["completion_mask"])[0]
    torch.testing.assert_close(
        again, logp[1], rtol=0, atol=0, msg="the padding token is never looked at"
    )


def test_a_shared_prompt_changes_neither_log_probabilities_nor_gradients(table, smoke):
    k = smoke.rollouts.samples
    batch = collate(table, [*range(k), 2 * k, k + 1, k])
    shared, expected = [], []
    for values, together in ((shared, True), (expected, False)):
        model = loading.attach_adapter(loading.load_model(smoke), smoke.lora, 1).double()
        if together:
            logp = logprobs.token_logprobs(model, batch["input_ids"], batch["completion_mask"])
        else:
            inside = batch["completion_mask"][:, 1:]
            logits = model(input_ids=batch["input_ids"]).logits[:, :-1].double()
            chosen = batch["input_ids"][:, 1:, None]
            logp = torch.log_softmax(logits, -1).gather(-1, chosen).squeeze(-1) * inside
        (logp * torch.linspace(-1, 2, logp.numel()).reshape(logp.shape)).sum().backward()
        values += [
            logp.detach(),
            *(weight.grad for weight in model.parameters() if weight.requires_grad),
        ]
    for one, two in zip(shared, expected, strict=True):
        torch.testing.assert_close(
            one.double(),
            two.double(),
            rtol=1e-5,
            atol=1e-5,
            msg="prompts computed once against each row by itself",
        )


def test_collated_log_probabilities_are_at_their_tokens(table, smoke):
    batch = collate(table, [0, 5])
    base = loading.load_model(smoke, "base")
    logp = logprobs.token_logprobs(base, batch["input_ids"], batch["completion_mask"])
    torch.testing.assert_close(
        batch["rows"].reference,
        logp,
        rtol=1e-4,
        atol=1e-4,
        msg="the table's logp_base is what the base gives, token by token",
    )
    assert batch["rows"].mask.sum(1).tolist() == table.tokens[[0, 5]].tolist(), (
        "the mask covers the completion, the end token included"
    )


def plain_loop(smoke, run, table):
    """SFT in plain PyTorch: rows one by one, the loss of transformers, AdamW, a cosine after one
    warm-up step. Returns the adapter's weights by name, and the losses."""
    model = loading.attach_adapter(loading.load_model(smoke), smoke.lora, run.init_seed)
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        trained, betas=(0.9, 0.999), eps=1e-8, weight_decay=run.weight_decay
    )
    prompts = np.random.default_rng([run.seed, 0]).permutation(smoke.problems.train)
    k = smoke.rollouts.samples
    order = [prompt * k + sample for prompt in prompts for sample in range(k)]
    warm = math.ceil(run.warmup * run.steps)
    losses = []
    for step in range(run.steps):
        rate = step / warm
        if step >= warm:
            rate = (1 + math.cos(math.pi * (step - warm) / (run.steps - warm))) / 2
        optimizer.param_groups[0]["lr"] = run.learning_rate * rate
        chosen = table.iloc[order[step * run.batch_size : (step + 1) * run.batch_size]]
        count = sum(map(len, chosen.completion_ids))
        total = 0.0
        for row in chosen.itertuples():
            prompt, completion = list(row.prompt_ids), list(row.completion_ids)
            loss = model(
                input_ids=torch.tensor([prompt + completion]),
                labels=torch.tensor([[-100] * len(prompt) + completion]),
            ).loss
            total = total + loss * len(completion) / count
        losses.append(total.item())
        optimizer.zero_grad()
        total.backward()
        torch.nn.utils.clip_grad_norm_(trained, run.clip)
        optimizer.step()
    names = {
        name.replace(".default", ""): weight.detach()
        for name, weight in model.named_parameters()
        if weight.requires_grad
    }
    return names, losses


def test_three_steps_are_those_of_a_plain_loop(table, smoke):
    run = edited(smoke, "sft", steps=4, warmup=0.25, clip=0.05)
    folder = trainer.train(smoke, run)
    expected, losses = plain_loop(smoke, run, table)
    history = pd.read_parquet(folder / "history.parquet")
    assert history.grad_norm.max() > run.clip, "the clip must act, or it is not tested"
    np.testing.assert_allclose(
        history.loss, losses, rtol=1e-4, err_msg="the recorded loss is the token mean of the step"
    )
    assert_same_adapter(
        weights(folder), expected, "Trainer against plain PyTorch", rtol=1e-3, atol=1e-5
    )


def test_equal_initial_seeds_share_a_and_start_at_zero(smoke):
    adapters = [
        dict(loading.attach_adapter(loading.load_model(smoke), smoke.lora, seed).named_parameters())
        for seed in (7, 7, 8)
    ]
    for name, weight in adapters[0].items():
        if "lora_B" in name:
            assert (weight == 0).all(), (
                f"{name}: B starts at 0, so that the first policy is the base"
            )
        if "lora_A" in name:
            assert torch.equal(weight, adapters[1][name]), f"{name}: equal seeds share A exactly"
            assert not torch.equal(weight, adapters[2][name]), f"{name}: another seed, another A"
            bound = 1 / math.sqrt(weight.shape[1])
            assert weight.abs().max() <= bound, (
                "kaiming uniform with a = sqrt 5: |A| <= 1 / sqrt(d_in)"
            )


def test_the_mirrored_start_draws_b_as_the_usual_one_draws_a(smoke):
    first, again, other, usual = (
        dict(
            loading.attach_adapter(
                loading.load_model(smoke), smoke.lora, seed, zero
            ).named_parameters()
        )
        for seed, zero in ((7, "A"), (7, "A"), (8, "A"), (7, "B"))
    )
    for name, weight in first.items():
        if "lora_A" in name:
            assert (weight == 0).all(), (
                f"{name}: A starts at 0, so that the first policy is the base here too"
            )
        if "lora_B" in name:
            assert torch.equal(weight, again[name]), f"{name}: equal seeds share B exactly"
            assert not torch.equal(weight, other[name]), f"{name}: another seed, another B"
            bound = 1 / math.sqrt(weight.shape[0])
            assert bound / 2 < weight.abs().max() <= bound, (
                "kaiming uniform with a = sqrt 5 on the transpose: |B| <= 1 / sqrt(d_out)"
            )
            assert weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.2), (
                "uniform on that interval"
            )
        if "lora_" not in name:
            assert torch.equal(weight, usual[name]), f"{name}: the base is the same"


def test_the_mirrored_start_moves_a_first_and_stays_in_the_drawn_columns(table, smoke):
    run = edited(smoke, "sft", zero="A", steps=2, warmup=0.0, weight_decay=0.0, snapshots=())
    start = loading.attach_adapter(loading.load_model(smoke), smoke.lora, run.init_seed, "A")
    drawn = {
        name.replace(".default", ""): weight
        for name, weight in start.named_parameters()
        if "lora_B" in name
    }
    one = weights(trainer.train(smoke, run.model_copy(update={"steps": 1})))
    for name, B in drawn.items():
        assert torch.equal(one[name], B), (
            f"{name}: the first gradient with respect to B is 0, since A is"
        )
        assert one[name.replace("lora_B", "lora_A")].norm() > 0, "the first step moves A"
    two = weights(trainer.train(smoke, run))
    assert all((two[name] - B).norm() > 0 for name, B in drawn.items()), (
        "from the second step on B moves as well"
    )


def test_the_initial_adapter_does_not_depend_on_the_state_of_the_generator(smoke):
    torch.manual_seed(1)
    first = loading.attach_adapter(loading.load_model(smoke), smoke.lora, 7).state_dict()
    torch.manual_seed(2)
    torch.rand(10)
    second = loading.attach_adapter(loading.load_model(smoke), smoke.lora, 7).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first), (
        "A is a function of init_seed alone"
    )


def test_dpo_starts_at_log_two(table, smoke):
    history = pd.read_parquet(trainer.train(smoke, smoke.runs["dpo"]) / "history.parquet")
    assert history.loss[0] == pytest.approx(math.log(2), abs=1e-4), (
        "B = 0: the policy is its reference"
    )


def test_methods_differ_and_a_run_is_a_function_of_its_spec(table, smoke):
    first = {name: weights(trainer.train(smoke, smoke.runs[name])) for name in ("sft", "rft")}
    module = next(name for name in first["sft"] if "lora_B" in name)
    assert not torch.equal(first["sft"][module], first["rft"][module]), "other rows, another update"
    storage.remove(store.results("smoke") / "runs")
    assert_same_adapter(
        weights(trainer.train(smoke, smoke.runs["sft"])),
        first["sft"],
        "the same spec twice is the same to the last bit",
    )


# --- which rows, in which order ------------------------------------------------------------------


def test_rft_trains_on_correct_rows_only(table, smoke, seen):
    trainer.train(smoke, smoke.runs["rft"])
    rows = list(itertools.chain(*seen))
    assert len(rows) >= 12, "three steps of four rows"
    assert (table.reward[rows] == 1).all(), "RFT never sees a wrong completion"


def test_dpo_trains_on_alternating_chosen_and_rejected(table, smoke, seen):
    trainer.train(smoke, smoke.runs["dpo"])
    rows = list(itertools.chain(*seen))
    assert {len(batch) for batch in seen} == {8}, "a batch of four pairs holds eight rows"
    assert table.reward[rows].tolist() == [1, 0] * (len(rows) // 2), (
        "chosen, rejected, chosen, rejected, ..."
    )
    prompts = table.problem_id[rows].tolist()
    assert prompts[::2] == prompts[1::2], "a pair answers one prompt"


def test_every_method_walks_through_the_prompts_in_one_order(table):
    prompts = list(table.problem_id.unique())
    passes = {}
    for rows in ("all", "correct", "correct-one", "pairs"):
        row_numbers = rollouts.select(table, rows)
        length = 2 * sum(map(len, row_numbers.values()))
        order = row_order(row_numbers, prompts, 42, length)
        passes[rows] = [
            [prompt for prompt, _ in itertools.groupby(table.problem_id[part])]
            for part in (order[: length // 2], order[length // 2 :])
        ]
        assert sorted(order[: length // 2]) == sorted(itertools.chain(*row_numbers.values())), (
            f"{rows}: a pass takes each of its rows once"
        )
    assert passes["all"][0] != passes["all"][1], "each pass has another order"
    assert sorted(passes["all"][0]) == sorted(prompts), "rows of a prompt stay together"
    for rows, (first, second) in passes.items():
        assert first == [prompt for prompt in passes["all"][0] if prompt in first], (
            f"{rows}: first pass in the common order"
        )
        assert second == [prompt for prompt in passes["all"][1] if prompt in second], (
            f"{rows}: second pass in the common order"
        )
    every = rollouts.select(table, "all")
    assert row_order(every, prompts, 43, 32) != row_order(every, prompts, 42, 32), (
        "another seed, another order"
    )


def test_training_follows_the_order_of_rows(table, smoke, seen):
    trainer.train(smoke, smoke.runs["sft"])
    expected = row_order(rollouts.select(table, "all"), list(table.problem_id.unique()), 42, 12)
    assert list(itertools.chain(*seen))[:12] == expected, (
        "batches are taken in order, without a second shuffle"
    )


# --- the store -----------------------------------------------------------------------------------


def test_a_finished_run_is_not_trained_again(table, smoke, never_train):
    folder = trainer.train(smoke, smoke.runs["sft"])
    before = content(folder)
    assert set(before) >= {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
        "history.parquet",
        "run.json",
    }, "a whole run"
    assert len(pd.read_parquet(folder / "history.parquet")) == 3, "one row per step"
    assert json.loads(before["run.json"])["spec"] == smoke.runs["sft"].model_dump(mode="json"), (
        "the record holds the spec"
    )
    assert not list((store.results("smoke") / "checkpoints").glob("*")), (
        "checkpoints of a finished run are gone"
    )
    never_train()
    assert trainer.train(smoke, smoke.runs["sft"]) == folder
    assert content(folder) == before, "asking again changes nothing"


def test_an_edited_spec_has_a_folder_of_its_own(table, smoke, never_train):
    book = trainer.train(smoke, smoke.runs["sft"])
    before = content(book)
    mine = trainer.train(smoke, edited(smoke, "sft", learning_rate=5e-4))
    assert mine != book
    assert content(book) == before, "a reader's experiment leaves the book's run alone, to the byte"
    assert any(
        not torch.equal(weight, weights(mine)[name]) for name, weight in weights(book).items()
    ), "another rate, another adapter"
    never_train()
    assert trainer.train(smoke, edited(smoke, "sft", learning_rate=5e-4)) == mine, (
        "the experiment is found again"
    )


def test_an_edited_profile_moves_the_run_aside_and_finds_it_again(table, smoke, never_train):
    book = trainer.train(smoke, smoke.runs["sft"])
    before = content(book)
    run = edited(smoke, "sft", seed=43)
    other = smoke.model_copy(update={"runs": {**smoke.runs, "sft": run}})
    assert trainer.train(other, run) == book, "the name belongs to the profile's spec of today"
    after = content(book)
    assert (
        after["adapter/adapter_model.safetensors"] != before["adapter/adapter_model.safetensors"]
    ), "another order of rows, another adapter"
    never_train()
    assert content(trainer.train(smoke, smoke.runs["sft"])) == before, (
        "the old run comes back, untouched, when its spec returns"
    )
    assert content(trainer.train(other, run)) == after, "and so does the new one"


def test_a_run_tried_before_it_entered_the_profile_is_taken_over(table, smoke, never_train):
    run = edited(smoke, "sft", seed=43)
    before = content(trainer.train(smoke, run))
    never_train()
    other = smoke.model_copy(update={"runs": {**smoke.runs, "sft": run}})
    folder = trainer.train(other, run)
    assert folder.name == "sft", "it moves to the name the profile gives it"
    assert content(folder) == before, "without training again"


@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_killed_run_goes_on_to_the_same_adapter(stop, table, smoke, monkeypatch):
    run = edited(smoke, "sft", steps=6)
    folder = trainer.train(smoke, run)
    whole, history = weights(folder), pd.read_parquet(folder / "history.parquet")
    storage.remove(folder)
    on_step_end, steps = trainer._Recorder.on_step_end, []

    def kill(self, args, state, control, **kwargs):
        on_step_end(self, args, state, control, **kwargs)
        steps.append(state.global_step)
        if state.global_step == stop and steps.count(stop) == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer._Recorder, "on_step_end", kill)
    with pytest.raises(KeyboardInterrupt):
        trainer.train(smoke, run)
    assert not folder.exists(), "a killed run leaves no folder that looks finished"
    resumed = trainer.train(smoke, run)
    saved = (stop - 1) // 2 * 2
    assert steps == [*range(1, stop + 1), *range(saved + 1, 7)], (
        "it goes on from its last checkpoint, every second step"
    )
    assert_same_adapter(weights(resumed), whole, f"killed at step {stop} and resumed")
    pd.testing.assert_frame_equal(pd.read_parquet(resumed / "history.parquet"), history)


def test_options_of_the_objective_take_part(table, smoke):
    plain = trainer.train(smoke, edited(smoke, "rift"))
    strong = trainer.train(smoke, edited(smoke, "rift", options={"negative_reward": -5.0}))
    assert plain != strong, "other options, another run"
    assert any(
        not torch.equal(weight, weights(strong)[name]) for name, weight in weights(plain).items()
    ), "options reach the loss"


# --- messages ------------------------------------------------------------------------------------


# The first step of a warm-up has the rate 0.
@pytest.mark.parametrize(
    ("warmup", "step", "cause"),
    [
        (0.0, 1, "the learning rate is not the cause: look at the base model"),
        (0.0, 2, "Lower the learning rate"),
        (0.3, 2, "the learning rate is not the cause: look at the base model"),
        (0.3, 3, "Lower the learning rate"),
    ],
)
def test_a_loss_that_is_not_a_number_stops_the_run_and_blames_the_rate_only_if_it_acted(
    warmup, step, cause, table, smoke, monkeypatch
):
    steps = []

    def broken(logp, rows):
        steps.extend([None] * logp.requires_grad)  # not for the step's weight
        return logp.sum() * (math.nan if len(steps) == step else 1.0), rows.mask.sum()

    monkeypatch.setitem(
        objectives.OBJECTIVES, "broken", objectives.Objective(broken, "all", "a test")
    )
    run = edited(smoke, "sft", objective="broken", warmup=warmup)
    with pytest.raises(
        FloatingPointError,
        match=rf"training sft: loss nan, .* at step {step}, of rows \d+(, \d+)+ of the table"
        f".*{cause}",
    ):
        trainer.train(smoke, run)
    assert not trainer.run_folder(smoke, run).exists(), "nothing that looks finished is left"


def with_unknown_writer(table):
    """The table where the writer of wrong rollouts is a server, whose log-probabilities are not
    known."""
    is_right = table.reward > 0
    logps = table.logp_behaviour
    return table.assign(logp_behaviour=logps.where(is_right, logps * np.float32(math.nan)))


@pytest.mark.parametrize("name", ["topr", "offline-grpo-clipped"])
def test_a_ratio_to_an_unknown_writer_is_refused_before_training(
    name, table, smoke, monkeypatch, never_train
):
    unknown, wrong = with_unknown_writer(table), int((table.reward == 0).sum())
    monkeypatch.setattr(rollouts, "load_table", lambda *_: unknown)
    never_train()
    with pytest.raises(
        ValueError,
        match=f"run {name!r}: objective {name!r} needs the log-probabilities .* the table of "
        f"the teacher's rollouts .* for {wrong} of the {len(table)} rows .* choose an objective",
    ):
        trainer.train(smoke, smoke.runs[name])


def test_only_rows_that_a_run_trains_on_need_a_known_writer(table, smoke):
    unknown = with_unknown_writer(table)
    assert batches.rows_of(unknown, edited(smoke, "topr", rows="correct")) == rollouts.select(
        table, "correct"
    ), "the writer of the right rollouts is known"
    assert batches.rows_of(unknown, smoke.runs["sft"]) == rollouts.select(table, "all"), (
        "SFT needs no writer"
    )


def test_unknown_objective_rows_and_options_are_refused(table, smoke):
    with pytest.raises(ValueError, match="unknown objective 'ppo': choose one of sft"):
        trainer.train(smoke, edited(smoke, "sft", objective="ppo"))
    with pytest.raises(ValueError, match="unknown choice of rows 'best'"):
        trainer.train(smoke, edited(smoke, "sft", rows="best"))
    with pytest.raises(ValueError, match="betta"):
        trainer.train(smoke, edited(smoke, "dpo", options={"betta": 0.1}))


def test_unknown_model_is_refused(table, smoke):
    with pytest.raises(
        ValueError, match="unknown model 'huge' in profile 'smoke': choose one of base"
    ):
        trainer.train(smoke, edited(smoke, "sft", base="huge"))


def test_training_without_a_table_says_how_to_make_it(workplace, smoke):
    with pytest.raises(FileNotFoundError, match="python -m helpers rollouts smoke"):
        trainer.train(smoke, smoke.runs["sft"])


def test_a_foreign_or_missing_adapter_is_named_and_nothing_is_touched(smoke, table):
    run = smoke.runs["sft"]
    folder = trainer.train(smoke, run)
    adapter = folder / "adapter" / "adapter_model.safetensors"
    other = trainer.train(smoke, smoke.runs["rft"]) / "adapter" / "adapter_model.safetensors"
    adapter.write_bytes(other.read_bytes())
    with pytest.raises(
        ValueError,
        match=r"runs/sft/adapter/adapter_model\.safetensors is missing, damaged or changed",
    ):
        trainer.train(smoke, run)
    assert adapter.read_bytes() == other.read_bytes(), "the message must come before any change"
    with pytest.raises(FileNotFoundError, match="holds no adapter"):
        loading.load_adapted(smoke, run, folder / "nowhere")


@pytest.mark.parametrize("rewards", ["all right", "all wrong", "one rollout per prompt"])
@pytest.mark.parametrize("name", ["sft", "rift", "offline-grpo"])
def test_tables_without_mixed_groups_train_what_can_be_trained(
    name, rewards, table, smoke, monkeypatch
):
    edited_table = (
        table.assign(reward=float(rewards == "all right"))
        if "all" in rewards
        else table.groupby("problem_id").head(1)
    )
    monkeypatch.setattr(rollouts, "load_table", lambda *_: edited_table)
    history = pd.read_parquet(trainer.train(smoke, edited(smoke, name)) / "history.parquet")
    assert np.isfinite(history[["loss", "grad_norm"]]).all(axis=None), f"{name}: {rewards}"
    with pytest.raises(ValueError, match="the table of rollouts has no rows of the kind 'pairs'"):
        trainer.train(smoke, edited(smoke, "dpo")) if "all" in rewards else rollouts.select(
            edited_table, "pairs"
        )


def test_an_adapter_of_another_base_is_refused_by_name(smoke, table):
    adapter = trainer.train(smoke, smoke.runs["sft"]) / "adapter"
    with pytest.raises(ValueError, match="was made for another base than 'base' of profile 'tiny'"):
        loading.load_adapted(profiles.load("tiny"), profiles.load("tiny").runs["sft"], adapter)


def test_an_adapter_that_names_another_base_of_its_shape_is_refused():
    tiny = profiles.load("tiny")
    adapter = store.shipped("tiny") / "runs" / "strong-sft" / "adapter"
    with pytest.raises(
        ValueError,
        match=r"another base than 'base' of profile 'tiny': "
        "for 'data/models/tiny/strong-base', not 'data/models/tiny/base'",
    ):
        loading.load_adapted(tiny, tiny.runs["sft"], adapter)
