"""The recurrent language model: how it generates, and what its options do."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lit_tbptt import GRU, LSTM, InputError, RecurrentLM, Window


@pytest.fixture
def model():
    return RecurrentLM(11, LSTM(6, 2, input_size=5)).eval()


def test_the_likeliest_continuation_is_that_of_reading_everything_again(model):
    prompts = [[3], [1, 4, 1, 5], [9, 2, 6]]
    generated = model.generate(prompts, 8, temperature=0.0)
    for prompt, tokens in zip(prompts, generated, strict=True):
        text = list(prompt)
        for _ in range(8):
            logits, _ = model(torch.tensor([text]), model.initial_state(1))
            text.append(int(logits[0, -1].argmax()))
        assert tokens == text[len(prompt) :]


def test_the_same_seed_gives_the_same_text_alone_or_in_company(model):
    company = model.generate([[3], [1, 4, 1, 5]], 20, seed=7)
    assert company == model.generate([[3], [1, 4, 1, 5]], 20, seed=7)
    assert company[0] == model.generate([[3]], 20, seed=7)[0]
    assert company != model.generate([[3], [1, 4, 1, 5]], 20, seed=8)


def test_generation_reads_each_token_once(model):
    steps = []
    model.core.register_forward_hook(lambda core, given, returned: steps.append(given[0].shape[1]))
    model.generate([[1, 2, 3], [4, 5, 6, 7]], 10)
    assert steps == [3] + [1] * 10


def test_the_output_layer_runs_for_the_tokens_that_are_sampled_alone(model):
    rows = []
    model.head.register_forward_hook(lambda head, given, returned: rows.append(len(given[0])))
    model.generate([[1, 2, 3], [4, 5, 6, 7, 8]], 4)
    assert rows == [1, 1, 2, 2, 1, 1]


def test_a_prompt_draws_from_the_generator_of_its_seed(model):
    """Each token is the one at which the cumulated probabilities reach the next number of the prompt's generator."""
    prompts = [[3], [1, 4, 1, 5], [9, 2, 6]]
    for i, (prompt, tokens) in enumerate(
        zip(prompts, model.generate(prompts, 9, temperature=0.6, seed=7), strict=True)
    ):
        generator, text = torch.Generator().manual_seed(7 + i), list(prompt)
        for draw in 1 - torch.rand(9, dtype=torch.double, generator=generator):
            logits, _ = model(torch.tensor([text]), model.initial_state(1))
            cumulated = torch.softmax(logits[0, -1].double() / 0.6, 0).cumsum(0)
            text.append(int((cumulated < draw * cumulated[-1]).sum()))
        assert tokens == text[len(prompt) :]


@pytest.mark.parametrize("options", [{}, {"temperature": 0.0}, {"temperature": 0.7, "top_k": 5, "top_p": 0.8}])
def test_a_stream_has_the_tokens_of_generate_as_soon_as_they_are_sampled(model, options):
    prompts = [[3], [1, 4, 1, 5], [9, 2, 6]]
    steps = list(model.stream(prompts, 7, seed=2, **options))
    assert [[token is not None for token in step] for step in steps] == [
        [first <= step < first + 7 for first in (0, 3, 2)] for step in range(10)
    ]
    texts = [[token for token in lane if token is not None] for lane in zip(*steps, strict=True)]
    assert texts == model.generate(prompts, 7, seed=2, **options)
    assert list(model.stream([[3]], 0)) == []


def test_a_stream_computes_no_further_than_it_is_read(model):
    steps = []
    model.core.register_forward_hook(lambda core, given, returned: steps.append(given[0].shape[1]))
    stream = model.train().stream([[1, 2, 3]], 10)
    next(stream), next(stream)
    assert steps == [3, 1]
    stream.close()
    assert model.training


def test_top_p_narrows_the_choice(model):
    (likeliest,) = model.generate([[1]], 12, temperature=0.0)
    assert model.generate([[1]], 12, top_p=1e-6) == [likeliest]
    assert model.generate([[1]], 12, top_p=1.0) == model.generate([[1]], 12)
    assert model.generate([[1]], 12, top_p=0.5) not in ([likeliest], model.generate([[1]], 12))


@pytest.mark.parametrize("training", [True, False])
def test_generation_leaves_the_mode_as_it_was(model, training):
    model.train(training)
    model.generate([[1]], 2)
    assert {module.training for module in model.modules()} == {training}


def test_top_k_and_temperature_narrow_the_choice(model):
    (likeliest,) = model.generate([[1]], 12, temperature=0.0)
    assert model.generate([[1]], 12, top_k=1, temperature=3.0) == [likeliest]
    assert model.generate([[1]], 12, temperature=1e-6) == [likeliest]
    assert model.generate([[1]], 0) == [[]]


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        ([], {}, "prompts"),
        ([[]], {}, "prompts"),
        ([[1]], {"num_tokens": -1}, "num_tokens=-1"),
        ([[1]], {"seed": -1}, "seed=-1: must be from 0 to 9223372036854775807"),
        ([[1]], {"seed": 2**63}, "seed=9223372036854775808: must be from 0"),
        ([[1]], {"temperature": -0.5}, "temperature=-0.5"),
        ([[1]], {"top_k": 0}, "top_k=0"),
        ([[1]], {"top_p": 0.0}, "top_p=0.0"),
    ],
)
def test_options_of_generation_are_checked(model, prompts, options, message):
    with pytest.raises(InputError, match=message):
        model.generate(prompts, **({"num_tokens": 3} | options))
    with pytest.raises(InputError, match=message):
        next(model.stream(prompts, **({"num_tokens": 3} | options)))


def test_tied_weights_are_one_matrix():
    model = RecurrentLM(11, GRU(6), tie_weights=True)
    assert model.head.weight is model.embedding.weight
    assert {name for name, _ in model.named_parameters()} & {"projection.weight", "head.weight"} == set()


def test_tied_weights_of_another_width_than_the_core_are_behind_a_projection():
    model = RecurrentLM(131, GRU(6, input_size=5), tie_weights=True, output_dropout=0.5).double().eval()
    tokens, targets = torch.randint(131, (2, 3, 7))
    window, state = Window(tokens, targets), model.initial_state(3)
    outputs, _ = model.run_core(tokens, state)
    logits = outputs @ model.projection.weight.T @ model.embedding.weight.T + model.head.bias
    expected = cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")
    assert_close(model(tokens, state)[0], logits, atol=1e-10, rtol=0)
    assert_close(model.window_loss(window, state).loss, expected, atol=1e-10, rtol=0)
    with torch.no_grad():  # the output layer and the loss are then not one computation
        assert_close(model.window_loss(window, state).loss, expected, atol=1e-10, rtol=0)
    assert model.generate([[3]], 1, temperature=0.0) == [
        [int(model(tokens.new_tensor([[3]]), model.initial_state(1))[0].argmax())]
    ]


def test_dropout_acts_in_training_only():
    model = RecurrentLM(11, GRU(6), embedding_dropout=0.5, output_dropout=0.5)
    tokens = torch.randint(11, (3, 7))
    passes = [model(tokens, model.initial_state(3))[0] for _ in range(2)]
    assert not torch.equal(*passes)
    model.eval()
    assert_close(model(tokens, model.initial_state(3)), model(tokens, model.initial_state(3)))
    with pytest.raises(InputError, match=r"output_dropout=1"):
        RecurrentLM(11, GRU(6), output_dropout=1.0)


@pytest.mark.parametrize("num_tokens", [1, 5])
def test_a_model_that_has_diverged_says_so(model, num_tokens):
    with torch.no_grad():
        model.head.bias[3] = torch.nan
    with pytest.raises(InputError, match="logits are nan or inf"):
        model.generate([[1], [2, 3]], num_tokens)
    with pytest.raises(InputError, match="logits are nan or inf"):
        next(model.stream([[1], [2, 3]], num_tokens))
