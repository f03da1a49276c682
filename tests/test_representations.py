"""Hidden states against the model's own logits, CKA against the n x n kernels written out, and the
functional cosine against outputs written out."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from adapter_geometry import geometry, representations
from adapter_geometry.representations import States
from adapter_geometry.updates import Factors

pytestmark = pytest.mark.filterwarnings("error")


# --- CKA ------------------------------------------------------------------------------------------


def kernel_hsic(X, Y, debiased):
    """HSIC from the n x n kernels: H K H and H L H, or, with zero diagonals, the estimator of Song
    et al. (2012)."""
    K, L, n = X @ X.T, Y @ Y.T, len(X)
    if not debiased:
        H = np.eye(n) - 1 / n
        return np.trace(H @ K @ H @ L)
    K, L, one = K - np.diag(np.diag(K)), L - np.diag(np.diag(L)), np.ones(n)
    return (
        np.trace(K @ L)
        + (one @ K @ one) * (one @ L @ one) / (n - 1) / (n - 2)
        - 2 / (n - 2) * (one @ K @ L @ one)
    ) / (n * (n - 3))


def kernel_cka(X, Y, debiased):
    return kernel_hsic(X, Y, debiased) / np.sqrt(
        kernel_hsic(X, X, debiased) * kernel_hsic(Y, Y, debiased)
    )


def features(n, d1, d2, seed=0):
    """Related features with means far from 0 and columns of unequal size."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, d1)) * rng.exponential(size=d1) + 5 * rng.standard_normal(d1)
    return X, np.tanh(X @ rng.standard_normal((d1, d2))) + 0.3 * rng.standard_normal((n, d2)) - 2


@pytest.mark.parametrize("debiased", [True, False], ids=["debiased", "plain"])
@pytest.mark.parametrize(("n", "d1", "d2"), [(4, 3, 2), (30, 4, 9), (12, 50, 40), (7, 1, 1)])
def test_the_forms_without_kernels_are_those_of_the_kernels(n, d1, d2, debiased):
    X, Y = features(n, d1, d2)
    assert representations.hsic(X, Y, debiased) == pytest.approx(
        kernel_hsic(X, Y, debiased), rel=1e-8, abs=1e-9
    ), "HSIC"
    assert representations.cka(X, Y, debiased) == pytest.approx(
        kernel_cka(X, Y, debiased), rel=1e-8, abs=1e-9
    ), "CKA"


@pytest.mark.parametrize("debiased", [True, False], ids=["debiased", "plain"])
def test_cka_knows_no_rotation_scale_or_shift_but_a_stretch(debiased):
    X, Y = features(40, 6, 8)
    rng = np.random.default_rng(1)
    Q, S = (np.linalg.qr(rng.standard_normal((d, d)))[0] for d in (6, 8))
    plain = representations.cka(X, Y, debiased)
    moved = representations.cka(-3 * X @ Q + rng.standard_normal(6), 0.01 * Y @ S + 100, debiased)
    assert moved == pytest.approx(plain, rel=1e-8), (
        "rotation, common scale and shift of either side"
    )
    assert representations.cka(Y, X, debiased) == pytest.approx(plain, rel=1e-12), "symmetric"
    order = rng.permutation(40)
    assert representations.cka(X[order], Y[order], debiased) == pytest.approx(plain, rel=1e-9), (
        "the order of the rows"
    )
    assert abs(representations.cka(X * np.r_[30, np.ones(5)], Y, debiased) - plain) > 0.01, (
        "one stretched feature does count"
    )
    assert abs(representations.cka(X[order], Y, debiased) - plain) > 0.1, (
        "and so does which row goes with which"
    )


@pytest.mark.parametrize("debiased", [True, False], ids=["debiased", "plain"])
def test_features_are_wholly_like_themselves(debiased):
    X, _ = features(20, 7, 1)
    assert representations.cka(X, X, debiased) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(
    ("n", "debiased", "expected", "error"),
    [(100, False, 0.963, 0.003), (100, True, 0, 0.05), (1000, False, 0.718, 0.003)],
)
def test_unrelated_features_look_alike_unless_the_estimate_is_debiased(
    n, debiased, expected, error
):
    rng = np.random.default_rng(0)
    X, Y = rng.standard_normal((n, 2560)), rng.standard_normal((n, 2560))
    assert representations.cka(X, Y, debiased) == pytest.approx(expected, abs=error), (
        "independent Gaussians: plain CKA is about d / (d + n)"
    )


def test_debiased_cka_has_the_same_mean_at_every_number_of_rows():
    drawn = {}
    for n in (8, 80):
        rng = np.random.default_rng(n)
        values = []
        for _ in range(4000 // n):
            X = rng.standard_normal((n, 3))
            Y = 0.5 * X + np.sqrt(0.75) * rng.standard_normal((n, 3))
            values.append(representations.hsic(X, Y))
        drawn[n] = np.mean(values), np.std(values) / np.sqrt(len(values))
    for n, (mean, error) in drawn.items():
        assert mean == pytest.approx(0.75, abs=4 * error), (
            f"unbiased HSIC at n = {n} is |cov(X, Y)|^2 = 3 x 0.5^2"
        )


@pytest.mark.parametrize("constant", [0.0, 0.1, 1000.1, -1 / 3])
@pytest.mark.parametrize("debiased", [True, False], ids=["debiased", "plain"])
def test_constant_features_are_like_nothing(constant, debiased):
    X, Y = np.full((20, 4), constant), features(20, 3, 1)[0]
    for pair in ((X, Y), (Y, X), (X, X)):
        assert np.isnan(representations.cka(*pair, debiased)), (
            "no variation, no likeness: NaN, not the ratio of two roundings"
        )


def test_small_variation_on_a_large_mean_still_counts():
    X, Y = features(30, 3, 2)
    assert representations.cka(1e5 + 1e-3 * X, Y) == pytest.approx(
        representations.cka(X, Y), rel=1e-4
    )


def test_the_unbiased_estimate_needs_four_rows():
    with pytest.raises(ValueError, match="needs at least 4 rows, not 3"):
        representations.hsic(np.eye(3), np.eye(3))


def test_single_precision_features_are_compared_in_double():
    X, Y = (1000 + part.astype(np.float32) for part in features(50, 4, 4))
    assert representations.cka(X, Y) == pytest.approx(
        representations.cka(X.astype(float), Y.astype(float)), rel=1e-9
    )


# --- the interval ---------------------------------------------------------------------------------


def related(rng, n, d, overlap):
    """Gaussian features whose CKA is `overlap` in the limit: |cov|^2 / d."""
    X = rng.standard_normal((n, d))
    return X, np.sqrt(overlap) * X + np.sqrt(1 - overlap) * rng.standard_normal((n, d))


@pytest.mark.parametrize("overlap", [0.2, 0.9])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(overlap):
    rng, covered = np.random.default_rng(0), 0
    for _ in range(100):
        value, low, high = representations.cka_interval(
            *related(rng, 120, 5, overlap), np.arange(120)
        )
        assert low < value < high <= 1
        covered += low < overlap < high
    assert covered >= 88, f"covers in {covered} of 100 draws of independent rows; 95 is meant"


def test_rows_of_one_text_are_left_out_together():
    rng = np.random.default_rng(1)
    X, Y = related(rng, 60, 4, 0.5)
    copies = [np.repeat(part, 5, 0) + 0.1 * rng.standard_normal((300, 4)) for part in (X, Y)]
    texts = representations.cka_interval(*copies, np.repeat(np.arange(60), 5))
    rows = representations.cka_interval(*copies, rng.permutation(300))
    assert texts[0] == rows[0], "the value is the same"
    assert texts[2] - texts[1] > 1.5 * (rows[2] - rows[1]), (
        "300 tokens of 60 texts say little more than 60 tokens"
    )
    order = rng.permutation(300)
    shuffled = representations.cka_interval(
        copies[0][order], copies[1][order], np.repeat(np.arange(60), 5)[order]
    )
    assert shuffled == pytest.approx(texts, rel=1e-9), (
        "the rows of a text need not be next to each other"
    )


def test_with_fewer_texts_than_groups_one_text_is_left_out_at_a_time():
    X, Y = features(10, 3, 3)
    many, ten = (
        representations.cka_interval(X, Y, np.arange(10), groups=groups) for groups in (50, 10)
    )
    assert many == pytest.approx(ten, rel=1e-12), "an empty group is no group"


def test_the_table_holds_what_each_pair_gives_by_itself(texts, tiny_model):
    states_of = {
        run: representations.states(tiny_model(seed=seed), *texts)
        for seed, run in enumerate(("base", "a", "b"))
    }
    rows = np.flatnonzero(states_of["base"].is_completion)
    table = representations.cka_table(states_of, rows, groups=3)
    assert len(table) == 3 * 3, "pairs x layers"
    text = states_of["base"].text[rows]
    for row in table.itertuples():
        X, Y = (states_of[run].hidden[row.layer][rows] for run in (row.run_a, row.run_b))
        assert row.n == len(rows)
        assert (row.debiased, row.low, row.high) == pytest.approx(
            representations.cka_interval(X, Y, text, 3), rel=1e-8
        ), f"debiased, layer {row.layer}"
        assert row.biased == pytest.approx(representations.cka(X, Y, debiased=False), rel=1e-8), (
            f"plain, layer {row.layer}"
        )


def test_the_table_gives_no_likeness_to_constant_features():
    X, Y = np.full((20, 4), 0.1, np.float32), features(20, 3, 1)[0]
    numbers = np.arange(20)
    states_of = {
        run: States(part[None].astype(np.float32), numbers, numbers, numbers, numbers >= 0)
        for run, part in (("constant", X), ("other", Y))
    }
    table = representations.cka_table(states_of, np.arange(20))
    assert table[["debiased", "biased"]].isna().all().all()


# --- hidden states --------------------------------------------------------------------------------


@pytest.fixture
def texts():
    rng = np.random.default_rng(0)
    return tuple(
        [rng.integers(1, 40, rng.integers(1, size)).tolist() for _ in range(7)] for size in (10, 14)
    )


def test_hidden_states_are_the_models_own_from_the_embedding_to_the_logits(texts, tiny_model):
    model = tiny_model()
    states = representations.states(model, *texts)
    assert states.hidden.shape[0] == model.config.num_hidden_layers + 1, (
        "before the first layer and after each"
    )
    assert states.hidden.dtype == np.float32
    for i, (prompt, completion) in enumerate(zip(*texts, strict=True)):
        is_in_text, ids = states.text == i, torch.tensor([prompt + completion])
        hidden = torch.from_numpy(states.hidden[:, is_in_text])
        torch.testing.assert_close(
            hidden[0],
            model.model.embed_tokens(ids)[0],
            rtol=0,
            atol=0,
            msg="the first is the embedding",
        )
        torch.testing.assert_close(
            model.lm_head(hidden[-1]),
            model(input_ids=ids).logits[0],
            rtol=1e-4,
            atol=1e-4,
            msg="the last gives the logits",
        )
        assert states.position[is_in_text].tolist() == list(range(len(prompt) + len(completion))), (
            "positions in the text, padding left out"
        )
        assert states.is_completion[is_in_text].tolist() == [False] * len(prompt) + [True] * len(
            completion
        ), "which of them the model wrote"


def test_states_do_not_depend_on_how_texts_are_batched(texts, tiny_model, monkeypatch):
    together = representations.states(tiny_model(), *texts)
    monkeypatch.setattr(representations, "_BATCH", 2)
    apart = representations.states(tiny_model(), *texts)
    np.testing.assert_allclose(
        apart.hidden,
        together.hidden,
        rtol=1e-4,
        atol=1e-5,
        err_msg="a text is not seen by its neighbours",
    )
    for field in ("decided", "text", "position", "is_completion"):
        np.testing.assert_array_equal(
            getattr(apart, field),
            getattr(together, field),
            err_msg=f"{field}: texts are numbered through all batches",
        )


def test_a_token_is_decided_from_the_layer_on_that_names_what_the_model_says():
    named = np.array(
        [
            [0, 1, 2, 4, 0, 1],  # by layer and token; the last is what the model says
            [0, 3, 2, 4, 0, 1],
            [0, 1, 2, 4, 5, 1],
            [0, 1, 5, 4, 5, 1],
        ]
    )
    hidden = np.eye(6)[named]
    hidden[:-1] *= -1  # this model's norm negates states; the last is normed already
    layers = tuple(torch.from_numpy(layer[None]) for layer in hidden)

    def body(**_):
        return SimpleNamespace(hidden_states=layers)

    body.norm = lambda states: -states
    model = SimpleNamespace(model=body, lm_head=lambda states: states, device="cpu")
    states = representations.states(model, [[7, 7]], [[7, 7, 7, 7]])
    assert states.decided.tolist() == [-1, 2, 3, 0, 2, -1], (
        "a name given early and lost again is no decision; "
        "the last prompt token says the first word"
    )


def test_decided_layers_are_those_of_the_logit_lens(texts, tiny_model):
    model = tiny_model()
    states = representations.states(model, *texts)
    hidden = torch.from_numpy(states.hidden)
    lens = (
        torch.stack(
            [
                *(model.lm_head(model.model.norm(layer)) for layer in hidden[:-1]),
                model.lm_head(hidden[-1]),
            ]
        )
        .argmax(-1)
        .numpy()
    )
    followed = np.r_[states.is_completion[1:], False]
    np.testing.assert_array_equal(
        states.decided == -1,
        ~followed,
        err_msg="what is said where no completion token follows is not asked",
    )
    for token in np.flatnonzero(followed):
        said, decided = lens[:, token] == lens[-1, token], states.decided[token]
        assert said[decided:].all(), "from then on the name stays"
        assert decided == 0 or not said[decided - 1], "and not before"


def test_one_completion_token_of_each_text_is_drawn(texts, tiny_model):
    states = representations.states(tiny_model(), *texts)
    chosen = representations.one_token_per_text(states)
    assert states.text[chosen].tolist() == list(range(7)), "one row per text"
    assert states.is_completion[chosen].all(), "none of the prompt, which all texts begin alike"
    np.testing.assert_array_equal(
        representations.one_token_per_text(states), chosen, err_msg="from the seed"
    )
    drawn = np.stack([representations.one_token_per_text(states, seed) for seed in range(200)])
    for text in range(7):
        completion = np.flatnonzero(states.is_completion & (states.text == text))
        assert set(drawn[:, text]) == set(completion), (
            "any token of the completion, whatever its position"
        )


# --- updates as the data see them -----------------------------------------------------------------

MODULES = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.self_attn.k_proj",
    "model.layers.1.self_attn.o_proj",
)


def inputs_of(model, module, prompts, completions):
    """(tokens, d_in) inputs of a module, one text at a time."""
    inputs_seen = []
    handle = model.get_submodule(module).register_forward_pre_hook(
        lambda _, inputs: inputs_seen.append(inputs[0][0])
    )
    for prompt, completion in zip(prompts, completions, strict=True):
        model(input_ids=torch.tensor([prompt + completion]))
    handle.remove()
    return torch.cat(inputs_seen).double()


def draw_updates(model, runs=("a", "b", "c"), rank=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {module: model.get_submodule(module).weight.shape for module in MODULES}
    return {
        run: {
            module: Factors(
                torch.randn(d_out, rank, generator=generator),
                torch.randn(rank, d_in, generator=generator),
                0.5 + number,
            )
            for number, (module, (d_out, d_in)) in enumerate(shapes.items())
        }
        for run in runs
    }


def test_input_moments_are_means_of_outer_products_over_all_tokens(texts, tiny_model, monkeypatch):
    model = tiny_model()
    monkeypatch.setattr(representations, "_BATCH", 3)
    moments = representations.input_moments(model, MODULES, *texts)
    for module in MODULES:
        h = inputs_of(model, module, *texts)
        torch.testing.assert_close(
            moments[module],
            h.T @ h / len(h),
            rtol=1e-4,
            atol=1e-5,
            msg=f"{module}: E[h h'], padding left out",
        )
    assert not any(model.get_submodule(module)._forward_pre_hooks for module in MODULES), (
        "the model is left as it was"
    )


def test_functional_cosine_is_the_cosine_of_what_the_updates_write(texts, tiny_model):
    model = tiny_model()
    adapters = draw_updates(model)
    cosine, sd = representations.functional_cosine(
        adapters, representations.input_moments(model, MODULES, *texts)
    )
    written = {
        run: torch.cat(
            [
                (
                    part.scale
                    * inputs_of(model, module, *texts)
                    @ part.A.double().T
                    @ part.B.double().T
                ).flatten()
                for module, part in update.items()
            ]
        )
        for run, update in adapters.items()
    }
    stacked = torch.nn.functional.normalize(torch.stack(list(written.values())))
    np.testing.assert_allclose(
        cosine,
        stacked @ stacked.T,
        rtol=1e-4,
        atol=1e-5,
        err_msg="E[(dW1 h)'(dW2 h)] over the texts, normalised",
    )
    assert (sd[~np.eye(3, dtype=bool)] > 0).all(), "every pair has a chance level"


def test_functional_cosine_with_white_inputs_is_the_plain_one(tiny_model):
    adapters = draw_updates(tiny_model())
    white = {
        module: 7.0 * torch.eye(part.A.shape[1], dtype=torch.float64)
        for module, part in adapters["a"].items()
    }
    for weighted, plain in zip(
        representations.functional_cosine(adapters, white),
        geometry.stacked_cosine(geometry.compare(adapters)),
        strict=True,
    ):
        np.testing.assert_allclose(
            weighted, plain, rtol=1e-9, atol=1e-12, err_msg="C = c I weighs all inputs alike"
        )


def test_functional_cosine_ignores_what_no_input_reaches(tiny_model):
    adapters = draw_updates(tiny_model())
    v = torch.randn(
        adapters["a"][MODULES[0]].A.shape[1],
        generator=torch.Generator().manual_seed(1),
        dtype=torch.float64,
    )
    moments = {MODULES[0]: torch.outer(v, v)}
    single = {run: {MODULES[0]: update[MODULES[0]]} for run, update in adapters.items()}
    write = {
        run: update[MODULES[0]].B.double() @ (update[MODULES[0]].A.double() @ v)
        for run, update in single.items()
    }
    expected = float(torch.nn.functional.cosine_similarity(write["a"], write["b"], dim=0))
    assert representations.functional_cosine(single, moments)[0][0, 1] == pytest.approx(
        expected, rel=1e-6
    ), "one input direction, one vector written"
