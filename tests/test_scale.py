"""What large models need: logits in parts, layers computed again, half precision, several
processes; each compared with the plain way."""

import os
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from test_trainer import assert_same_adapter, edited, weights

from adapter_geometry import storage
from helpers import profiles, store
from helpers.data import problems, rollouts, servers
from helpers.data.problem import TRAINED_ON
from helpers.evaluation import answering
from helpers.models import loading, logprobs, sampling
from helpers.training import batches, trainer


def computing(profile, **settings):
    """The profile with other settings of how it is computed."""
    return profile.model_copy(update={"compute": profile.compute.model_copy(update=settings)})


def gradients(profile, table, rows):
    """Log-probabilities of some rows, and the gradient of a weighted sum of them."""
    model = loading.attach_adapter(loading.load_model(profile), profile.lora, 1)
    batch = batches.collate(table, rows)
    logp = logprobs.token_logprobs(model, batch["input_ids"], batch["completion_mask"])
    (logp * torch.linspace(-1, 2, logp.numel()).reshape(logp.shape)).sum().backward()
    return [logp.detach(), *(weight.grad for weight in model.parameters() if weight.requires_grad)]


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_logits_in_parts_change_neither_log_probabilities_nor_gradients(table, smoke, size):
    in_parts = computing(smoke, logits_tokens=size)
    whole, parts = (gradients(profile, table, [0, 1, 5, 6]) for profile in (smoke, in_parts))
    for one, two in zip(whole, parts, strict=True):
        torch.testing.assert_close(
            two, one, rtol=1e-5, atol=1e-6, msg=f"{size} tokens at a time against all at once"
        )


def test_the_backward_pass_keeps_no_logits(table, smoke):
    """Bytes of tensors as long as the vocabulary that the graph holds on to."""
    held = {}
    for name, profile in (("whole", smoke), ("parts", computing(smoke, logits_tokens=4))):
        model = loading.attach_adapter(loading.load_model(profile), profile.lora, 1)
        batch = batches.collate(table, range(8))
        vocabulary, sizes = model.config.vocab_size, []

        def measure(saved, sizes=sizes, wide=vocabulary):
            sizes.append(saved.numel() * (saved.shape[-1:] == (wide,)))
            return saved

        with torch.autograd.graph.saved_tensors_hooks(measure, lambda saved: saved):
            logp = logprobs.token_logprobs(model, batch["input_ids"], batch["completion_mask"])
        held[name] = sum(sizes)
        assert logp.requires_grad
    assert held["whole"] >= batch["rows"].mask.sum() * vocabulary, (
        "the plain way keeps a row of the vocabulary for each token"
    )
    assert held["parts"] == 0, "in parts, none is held: they are computed again"


def test_rows_longer_than_the_limit_or_a_kernel_without_masks_run_one_by_one_to_the_same_numbers(
    table, smoke, monkeypatch
):
    shared = gradients(smoke, table, [0, 1, 2, 3])
    monkeypatch.setattr(logprobs, "LONGEST_SHARED", 10)
    for one, two in zip(shared, gradients(smoke, table, [0, 1, 2, 3]), strict=True):
        torch.testing.assert_close(
            two, one, rtol=1e-5, atol=1e-6, msg="a prompt read once, or once per row"
        )


def test_layers_computed_again_train_to_the_same_adapter(table, smoke):
    run = edited(smoke, "sft", steps=2)
    plain = weights(trainer.train(smoke, run))
    storage.remove(store.results("smoke") / "runs")
    again = weights(trainer.train(computing(smoke, checkpoints_layers=True), run))
    assert_same_adapter(again, plain, "layers computed again", rtol=1e-4, atol=1e-6)


def test_half_precision_trains_a_float32_adapter_that_is_not_taken_for_the_exact_one(table, smoke):
    halved, run = computing(smoke, dtype="bfloat16"), smoke.runs["sft"]
    assert trainer.identity(halved, run) != trainer.identity(smoke, run), (
        "another precision, another adapter"
    )
    exact, rough = (
        pd.read_parquet(trainer.train(profile, run) / "history.parquet")
        for profile in (smoke, halved)
    )
    np.testing.assert_allclose(
        rough.loss, exact.loss, rtol=0.02, err_msg="bfloat16 has three digits"
    )
    adapter = load_file(trainer.train(halved, run) / "adapter" / "adapter_model.safetensors")
    assert all(weight.dtype == torch.float32 for weight in adapter.values()), (
        "the adapter itself is trained in float32"
    )


def test_processes_that_cannot_share_a_step_are_refused(table, smoke, monkeypatch):
    class Three:
        num_processes, is_main_process = 3, True

        @staticmethod
        def main_process_first():
            return torch.no_grad()

    monkeypatch.setattr(trainer, "processes", Three)
    with pytest.raises(
        ValueError, match="3 processes with accumulation 1 do not divide batch_size"
    ):
        trainer.train(smoke, edited(smoke, "sft", batch_size=4))


TRAIN = """
import sys
from pathlib import Path
from helpers import profiles, store
from helpers.training import trainer
store.ROOT = Path(sys.argv[1])
profile = profiles.load("smoke")
changes = {"batch_size": 8, "accumulation": 2, "steps": 4, "learning_rate": 0.01}
if sys.argv[2] == "kto":
    changes["rows"] = "all"  # on which its baseline is above 0
run = profile.runs[sys.argv[2]].model_copy(update=changes)
sys.stdout.write(f"{trainer.train(profile, run)}\\n")  # in one piece, since two processes write
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sft", "rift", "dpo", "kto"])
def test_two_processes_make_the_update_of_one(name, table, workplace):
    script, environment = workplace / "train.py", {**os.environ, "OMP_NUM_THREADS": "1"}
    script.write_text(TRAIN)
    adapters, losses = {}, {}
    for processes in (1, 2):
        storage.remove(workplace / "results" / "smoke" / "runs")
        command = f"-m torch.distributed.run --standalone --nproc-per-node {processes}".split()
        done = subprocess.run(
            [sys.executable, *command, script, workplace, name],
            env=environment,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        folders = set(done.stdout.split())
        assert len(folders) == 1, "each process returns the folder that the first one wrote"
        assert len(list((workplace / "results" / "smoke" / "runs").iterdir())) == 1, (
            "one run folder, nothing moved aside"
        )
        folder = workplace / folders.pop()
        adapters[processes] = weights(folder)
        losses[processes] = pd.read_parquet(folder / "history.parquet").loss
    assert_same_adapter(adapters[2], adapters[1], f"{name} in two processes", rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(
        losses[2], losses[1], rtol=1e-4, err_msg="the recorded loss is that of the whole step"
    )
    assert (
        max(weight.abs().max() for name, weight in adapters[1].items() if "lora_B" in name) > 1e-3
    ), "the run must have moved, or nothing was compared"


MEMORY = """
import sys, torch
from pathlib import Path
from transformers import Qwen3Config, Qwen3ForCausalLM
from helpers import profiles
from helpers.models import loading, logprobs
tokens, size = int(sys.argv[1]), int(sys.argv[2])
torch.manual_seed(0)
config = Qwen3Config(
    vocab_size=151_936, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
    num_key_value_heads=1, head_dim=16, intermediate_size=64, max_position_embeddings=8192,
    tie_word_embeddings=True,
)
base = Qwen3ForCausalLM(config).requires_grad_(False)
model = loading.attach_adapter(base, profiles.load("smoke").lora, 1)
loading.causal_model(model).logits_tokens = size or None
ids = torch.randint(0, 1000, (4, tokens // 4 + 8))
mask = torch.zeros_like(ids)
mask[:, 8:] = 1

def kilobytes(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith(field)))

# The peak begins again: a new process has its parent's.
Path("/proc/self/clear_refs").write_text("5")
before = kilobytes("VmRSS")
logprobs.token_logprobs(model, ids, mask).sum().backward()
print((kilobytes("VmHWM") - before) / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(
    sys.platform != "linux", reason="the peak of a process' memory is read from /proc"
)
def test_at_a_vocabulary_of_150_thousand_memory_is_flat_in_the_length():
    def peak(tokens, size):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(tokens), str(size)],
            capture_output=True,
            text=True,
            check=True,
        )
        return float(done.stdout)

    short, long, plain = peak(1024, 128), peak(4096, 128), peak(1024, 0)
    logits = 1024 * 151_936 * 4 / 2**20
    assert plain > logits, (
        f"the plain way holds all logits at once ({logits:.0f} MiB): {plain:.0f} MiB"
    )
    assert short < 0.6 * logits, f"128 tokens at a time: {short:.0f} MiB"
    assert long < short + 100, f"four times the tokens: {long:.0f} MiB against {short:.0f}"


# --- what is written elsewhere -------------------------------------------------------------------


def elsewhere(smoke, monkeypatch, where, source, **changes):
    """The smoke study with a teacher that only writes."""
    study = smoke.model_copy(
        update={
            "models": {**smoke.models, "teacher": where},
            "rollouts": smoke.rollouts.model_copy(update={"source": source}),
            **changes,
        }
    )
    load = profiles.load
    monkeypatch.setattr(profiles, "load", lambda name: study if name == smoke.name else load(name))
    loading.model_digest.cache_clear()
    return study


@pytest.fixture(autouse=True)
def _fresh_digests():
    yield
    loading.model_digest.cache_clear()


CUT = "I do not"


def answers_of(smoke):
    """K answers to each problem that is not for measuring, by its question: right, wrong, without a
    box, and empty."""
    kinds = ("Well, \\boxed{{{}}}", "Surely \\boxed{{{}1}}", CUT, "")
    return {
        problem.question: [
            kinds[(number + sample) % 4].format(problem.answer)
            for sample in range(smoke.rollouts.samples)
        ]
        for split in TRAINED_ON
        for number, problem in enumerate(problems.problem_sets(smoke.problems)[split])
    }


def rows_of_answers(smoke):
    """Those answers as a file of rollouts holds them, one per row."""
    rows = [(question, text) for question, texts in answers_of(smoke).items() for text in texts]
    return pd.DataFrame(rows, columns=["question", "completion"])


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_rollouts_of_a_file_become_a_table_that_every_objective_but_those_of_ratios_can_train_on(
    smoke, workplace, monkeypatch, ending
):
    rows = rows_of_answers(smoke)
    file = workplace / f"given.{ending}"
    rows.to_json(file, orient="records", lines=True) if ending == "jsonl" else rows.to_parquet(file)
    study = elsewhere(smoke, monkeypatch, f"file:given.{ending}", "file")
    rollouts.make_table(study)
    table = rollouts.load_table(study)
    assert list(table.completion) == list(rows.completion[: len(table)]), (
        "the texts, in their order"
    )
    assert table.reward.mean() == pytest.approx(0.25), "each is graded: one kind of four is right"
    end = loading.load_tokenizer(study).eos_token_id
    assert all(ids[-1] == end for ids in table.completion_ids), (
        "a text that is whole ends with the end token"
    )
    assert all(np.isfinite(values).all() for values in table.logp_base), (
        "the base reads what others wrote"
    )
    assert all(np.isnan(values).all() for values in table.logp_behaviour), (
        "what its writer gave it is not known"
    )
    assert np.isfinite(
        pd.read_parquet(trainer.train(study, study.runs["sft"]) / "history.parquet").loss
    ).all()
    with pytest.raises(ValueError, match="objective 'topr' needs the log-probabilities"):
        trainer.train(study, edited(smoke, "sft", objective="topr"))
    file.write_bytes(file.read_bytes() + b" ")
    loading.model_digest.cache_clear()
    with pytest.raises(ValueError, match="was made with other models"):
        rollouts.load_table(study)


def test_a_file_without_enough_rollouts_or_the_columns_says_so(smoke, workplace, monkeypatch):
    study = elsewhere(smoke, monkeypatch, "file:given.jsonl", "file")
    given = rows_of_answers(smoke)
    given.iloc[1:].to_json(workplace / "given.jsonl", orient="records", lines=True)
    count = smoke.rollouts.samples
    with pytest.raises(
        ValueError,
        match=rf"given.jsonl: {count - 1} rollouts of the problem .* the profile asks for {count}",
    ):
        rollouts.make_table(study)
    given.rename(columns={"completion": "text"}).to_json(
        workplace / "given.jsonl", orient="records", lines=True
    )
    with pytest.raises(ValueError, match="need a column 'completion'; it has question, text"):
        rollouts.make_table(study)


def rows_of_file(smoke, monkeypatch, workplace, completions, **columns):
    """The first problem's rows, where a file holds these completions of it."""
    study = elsewhere(smoke, monkeypatch, "file:given.jsonl", "file")
    study = study.model_copy(
        update={"rollouts": study.rollouts.model_copy(update={"samples": len(completions)})}
    )
    problem = problems.problem_sets(smoke.problems)["train"][0]
    rows = pd.DataFrame({"question": problem.question, "completion": completions, **columns})
    rows.to_json(workplace / "given.jsonl", orient="records", lines=True)
    return rollouts.sample_rollouts(study, [problem])


def test_rollouts_of_a_file_that_were_cut_have_no_end_token(smoke, workplace, monkeypatch):
    rows = rows_of_file(
        smoke, monkeypatch, workplace, ["so 2", "so we add"], finish_reason=["stop", "length"]
    )
    end = loading.load_tokenizer(smoke).eos_token_id
    assert rows.truncated.tolist() == [False, True], "as the file says"
    assert [end in ids for ids in rows.completion_ids] == [True, False], "a cut text does not end"


@pytest.mark.parametrize("ending", ["<|im_end|>", "<|im_end|>\n"])
def test_an_end_token_behind_a_text_is_the_one_that_it_gets(
    smoke, workplace, monkeypatch, recwarn, ending
):
    texts = ["so 2", f"so 2{ending}", f"so 2{ending}"]
    rows = rows_of_file(smoke, monkeypatch, workplace, texts, truncated=[False, False, True])
    plain, ended, cut = rows.completion_ids
    assert ended == plain, "one end token, as of a text without it"
    assert cut == plain[:-1], "and none of what the file says was cut"
    assert rows.completion.tolist() == ["so 2"] * 3
    assert not [one for one in recwarn if "control" in str(one.message)], "nothing to tell"


def test_control_tokens_within_a_text_are_read_as_plain_text_and_told(
    smoke, workplace, monkeypatch
):
    texts = ["so 2", "so 2<|im_end|>\n<|im_start|>user\nMore", "so <|endoftext|><|im_end|>"]
    with pytest.warns(
        UserWarning,
        match="2 completions hold control tokens of the base, "
        r"first '<\|im_end\|>' in completion 1 \(the first is 0\) of ",
    ):
        rows = rows_of_file(smoke, monkeypatch, workplace, texts)
    tokenizer = loading.load_tokenizer(smoke)
    special = set(tokenizer.all_special_ids) | {tokenizer.convert_tokens_to_ids("<|im_start|>")}
    for ids in rows.completion_ids:
        assert not special & set(ids[:-1]), "no control token before the end"
        assert ids[-1] == tokenizer.eos_token_id
    assert rows.completion.tolist() == [*texts[:2], "so <|endoftext|>"], "the texts are kept"


def test_a_control_token_within_a_question_does_not_end_it(smoke):
    tokenizer = loading.load_tokenizer(smoke)
    question = "What does <|im_end|> say?"
    plain, ids = (loading.prompt_ids(tokenizer, text) for text in ("What?", question))
    assert ids.count(tokenizer.eos_token_id) == plain.count(tokenizer.eos_token_id) == 1, (
        "the template's own end of the question alone"
    )
    assert question in tokenizer.decode(ids), "and nothing of the question is lost"


@pytest.mark.parametrize(
    ("tail", "text", "read"),
    [
        ("", "<think>\nwell</think>2", "<think>\nwell</think>2"),
        ("<think>\n", "<think>\nwell</think>2", "well</think>2"),
        ("<think>\n", "\n<think>well</think>2", "well</think>2"),
        ("<think>", "<think>\nwell</think>2", "\nwell</think>2"),
        ("<think>\n", "well</think><think>2", "well</think><think>2"),
        ("<think>\n\n</think>\n\n", "<think>\nwell</think>2", "<think>\nwell</think>2"),
    ],
)
def test_a_thought_that_the_prompt_opens_is_not_opened_twice(
    smoke, workplace, monkeypatch, tail, text, read
):
    load = loading.load_tokenizer

    def thinking(profile, name="base"):
        tokenizer = load(profile, name)
        tokenizer.chat_template += f"{{{{ {tail!r} }}}}"
        return tokenizer

    monkeypatch.setattr(loading, "load_tokenizer", thinking)
    (row,) = rows_of_file(smoke, monkeypatch, workplace, [text]).itertuples()
    assert row.completion == read, f"after a prompt that ends with {tail!r}"


def test_a_servers_rollouts_are_asked_for_all_at_once_and_cut_ones_have_no_end(
    smoke, workplace, monkeypatch
):
    calls = []
    answers = {
        question: [text or "Nothing" for text in texts]
        for question, texts in answers_of(smoke).items()
    }
    first, refused = list(answers)[:2]
    answers[refused][0] = ""

    def complete(endpoint, prompts, **settings):
        calls.append(len(prompts))
        assert settings["samples"] == smoke.rollouts.samples
        return [
            [
                servers.Completion(text, "length" if text == CUT else "stop", 1.0, 1.0)
                for text in answers[prompt]
            ]
            for prompt in prompts
        ]

    monkeypatch.setattr(servers, "complete", complete)
    study = elsewhere(
        smoke,
        monkeypatch,
        "endpoint",
        "endpoint",
        endpoint=profiles.EndpointSettings(url="http://nowhere/v1", model="some-teacher"),
    )
    with pytest.warns(
        UserWarning,
        match=f"1 of {smoke.problems.train} problems are left out: some-teacher refused them",
    ):
        rollouts.make_table(study)
    table = rollouts.load_table(study)
    assert table.prompt.nunique() == smoke.problems.train - 1, (
        "a problem without all its answers is not trained on"
    )
    assert refused not in set(table.prompt)
    assert first in set(table.prompt)
    assert calls[0] == smoke.problems.train, "one call for all, so that the server always has work"
    assert (table.truncated == (table.completion == CUT)).all(), "a text that was cut does not end"
    with pytest.raises(
        ValueError,
        match="'teacher' of profile 'smoke' is 'endpoint': it wrote rollouts and can't be loaded",
    ):
        loading.load_model(study, "teacher")
    assert len(answering.teacher_rollouts(study)) == smoke.problems.validation, (
        "one answer to each validation problem"
    )


# --- vLLM, a schedule that is cut, many answers --------------------------------------------------


def test_vllm_is_asked_for_the_same_prompts_the_adapter_and_one_seed_per_completion(
    smoke, table, monkeypatch, tmp_path
):
    asked = []

    class LLM:
        def __init__(self, **settings):
            asked.append(settings)

        def generate(self, prompts, settings, lora_request=None, use_tqdm=True):
            asked.append((prompts, settings, lora_request))
            return [
                types.SimpleNamespace(outputs=[types.SimpleNamespace(token_ids=(number, 7))])
                for number in range(len(prompts))
            ]

    vllm, lora, request = map(types.ModuleType, ("vllm", "vllm.lora", "vllm.lora.request"))
    vllm.LLM, vllm.SamplingParams = LLM, lambda **settings: settings
    request.LoRARequest = lambda *parts: parts
    for module in (vllm, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    folder = tmp_path / "weights"
    folder.mkdir()
    settings_of_model = folder / "generation_config.json"
    settings_of_model.write_text('{"model_type": "qwen3", "eos_token_id": [9, 11]}')
    monkeypatch.setattr(
        loading, "local_folder", lambda source: folder if source == "random" else Path(source)
    )
    study = computing(smoke, engine="vllm")
    writer = answering.load_writer(study, study.runs["sft"])
    completions = sampling.sample(
        writer,
        [[1, 2], [3]],
        max_new_tokens=5,
        end_ids=sampling.end_ids_of(writer, loading.load_tokenizer(study)),
        batch_size=1,
        temperature=1.0,
        seed=3,
        indices=[10, 11],
    )
    assert completions == [[0, 7], [1, 7]], "token ids in the order of the prompts"
    (settings, (prompts, parameters, adapter)) = asked
    assert settings["enable_lora"]
    assert adapter[2] == str(trainer.train(study, study.runs["sft"]) / "adapter")
    assert [prompt["prompt_token_ids"] for prompt in prompts] == [[1, 2], [3]]
    assert len({one["seed"] for one in parameters}) == 2, "equal prompts must not get equal answers"
    assert all(
        one["stop_token_ids"] == [2, 9, 11] and one["max_tokens"] == 5 and one["temperature"] == 1.0
        for one in parameters
    )
    settings_of_model.rename(folder / "config.json")
    assert answering.load_writer(study, "base").generation_config.eos_token_id == [9, 11], (
        "without generation settings the model's configuration says what ends a text"
    )


def test_a_run_stops_before_its_schedule_ends(table, smoke):
    whole, cut = (
        pd.read_parquet(
            trainer.train(smoke, edited(smoke, "sft", **steps, warmup=0.25)) / "history.parquet"
        )
        for steps in ({"steps": 8}, {"steps": 3, "schedule": 8})
    )
    assert len(cut) == 3
    np.testing.assert_allclose(
        cut.learning_rate, whole.learning_rate[:3], err_msg="the rates of the longer schedule"
    )
    np.testing.assert_allclose(
        cut.loss, whole.loss[:3], rtol=1e-6, err_msg="and so the same first steps"
    )
    assert "schedule" not in smoke.runs["sft"].model_dump(), "a run without one keeps its hash"
    with pytest.raises(
        ValueError, match="a schedule of 2 steps ends before training does, after 3"
    ):
        profiles.Run(**smoke.runs["sft"].model_dump() | {"schedule": 2})


def test_sampled_answers_differ_from_one_another_and_are_stored(smoke, workplace):
    study = smoke.model_copy(
        update={"sampled": profiles.SampledSettings(split="hard", samples=3, temperature=1.0)}
    )
    answers = answering.sampled_records(study, "base")
    assert len(answers) == 3 * smoke.problems.hard
    assert set(answers.sample_id) == {0, 1, 2}
    assert answers.groupby("problem_id").completion.nunique().max() > 1, (
        "another seed, another answer"
    )
    again = answering.sampled_records(study, "base")
    pd.testing.assert_frame_equal(again.reset_index(drop=True), answers.reset_index(drop=True))
