"""HuggingFaceCore beside the library it wraps: equal outputs and gradients, pretrained models, and what is refused."""

import json
import shutil
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer
from torch.testing import assert_close

from lit_tbptt import HuggingFaceCore, InputError, LitLanguageModel, RecurrentLM, TextLanesDataModule
from lit_tbptt.cores import hugging_face
from lit_tbptt.cores.described import build, describe

LANES, STEPS, VOCABULARY = 3, 13, 11
SETTINGS = {
    "mamba": {"hidden_size": 6, "state_size": 5},
    "falcon_mamba": {"hidden_size": 6, "state_size": 5},
    "mamba2": {"hidden_size": 6, "state_size": 5, "num_heads": 4, "head_dim": 3, "n_groups": 2, "chunk_size": 4},
    "rwkv": {"hidden_size": 6},
    "xlstm": {"hidden_size": 8, "num_heads": 2, "chunk_size": 4, "ffn_round_up_to_multiple_of": 3},
}


@pytest.fixture
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture(params=SETTINGS)
def language_model(request, transformers):
    torch.manual_seed(1)
    tokens = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    settings = transformers.AutoConfig.for_model(
        request.param, num_hidden_layers=2, **SETTINGS[request.param], **tokens
    )
    model = transformers.AutoModelForCausalLM.from_config(settings)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "x_proj" in name:
                weight *= 9
            if "dt_" in name and name.endswith("bias"):
                weight += 3  # otherwise the state of a new Mamba is too small to matter
    return model


def save_tokenizer(folder, size):
    """A tokenizer of `size` tokens."""
    from tokenizers import Tokenizer, models

    vocabulary = {"<eos>": 0} | {chr(ord("a") + i): i + 1 for i in range(size - 1)}
    Tokenizer(models.BPE(vocabulary, [])).save(str(folder / "tokenizer.json"))


def test_windows_with_carried_state_are_the_librarys_whole_sequence(language_model, tmp_path):
    language_model.save_pretrained(tmp_path)
    core = HuggingFaceCore(pretrained=str(tmp_path))
    inputs = torch.randn(LANES, STEPS, core.input_size, requires_grad=True)
    expected = language_model.train().base_model(inputs_embeds=inputs, use_cache=False).last_hidden_state
    outputs, state = [], core.initial_state(LANES)
    for window in inputs.split((1, 5, 1, 6), 1):
        after, state = core(window, state)
        outputs.append(after)
    assert_close(torch.cat(outputs, 1), expected, rtol=1e-4, atol=1e-5)
    weights = torch.randn_like(expected)
    (ours,) = torch.autograd.grad((torch.cat(outputs, 1) * weights).sum(), inputs)
    (theirs,) = torch.autograd.grad((expected * weights).sum(), inputs)
    assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_a_pretrained_core_is_built_again_without_its_folder(language_model, tmp_path):
    folder = tmp_path / "model"
    language_model.save_pretrained(folder)
    core = HuggingFaceCore(pretrained=str(folder))
    shutil.rmtree(folder)
    again = HuggingFaceCore(**json.loads(json.dumps(core.init_args)))
    again.load_state_dict(core.state_dict())
    inputs = torch.randn(LANES, STEPS, core.input_size)
    assert_close(again(inputs, again.initial_state(LANES)), core(inputs, core.initial_state(LANES)), rtol=0, atol=0)


class OwnPretrained(HuggingFaceCore):
    """A user's core, whose arguments are others."""

    def __init__(self, folder, width=3):
        super().__init__(pretrained=folder, input_size=width)


def test_a_subclass_keeps_its_own_arguments(transformers, tmp_path):
    settings = transformers.AutoConfig.for_model("mamba", num_hidden_layers=1, hidden_size=6, vocab_size=VOCABULARY)
    transformers.AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path)
    core = OwnPretrained(str(tmp_path), 4)
    assert core.init_args == {"folder": str(tmp_path), "width": 4}
    assert repr(build(describe(core), OwnPretrained)) == repr(core)


@pytest.mark.parametrize("tie_weights", [True, False])
def test_a_language_model_starts_with_the_pretrained_tokens(language_model, tmp_path, tie_weights):
    language_model.save_pretrained(tmp_path)
    save_tokenizer(tmp_path, VOCABULARY - 1)  # the library pads its matrices
    network = RecurrentLM(VOCABULARY - 1, HuggingFaceCore(pretrained=str(tmp_path)), tie_weights=tie_weights)
    rows = language_model.get_input_embeddings().weight[: VOCABULARY - 1]
    assert_close(network.embedding.weight, rows, rtol=0, atol=0)
    if not tie_weights:
        columns = language_model.get_output_embeddings().weight[: VOCABULARY - 1]
        assert_close(network.head.weight, columns, rtol=0, atol=0)
        assert not network.head.bias.any()
        ids = torch.randint(VOCABULARY - 1, (LANES, STEPS))
        logits, _ = network(ids, network.initial_state(LANES))
        expected = language_model(ids, use_cache=False).logits[..., : VOCABULARY - 1]
        cap = 30 if language_model.config.model_type == "xlstm" else None  # which is not part of the core
        assert_close(cap * torch.tanh(logits / cap) if cap else logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("tokenizer_size", [None, 5])
def test_tokens_of_another_vocabulary_are_not_taken_over(transformers, tmp_path, tokenizer_size):
    tokens = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    settings = transformers.AutoConfig.for_model("mamba", num_hidden_layers=1, hidden_size=6, **tokens)
    transformers.AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path)
    if tokenizer_size:
        save_tokenizer(tmp_path, tokenizer_size)
    core = HuggingFaceCore(pretrained=str(tmp_path))
    with pytest.warns(UserWarning, match="start from random weights, since the vocabulary has 11 tokens"):
        RecurrentLM(VOCABULARY, core)


def test_a_training_from_a_folder_is_loaded_without_it(transformers, tmp_path):
    tokens = {"vocab_size": VOCABULARY, "pad_token_id": 0, "bos_token_id": 0, "eos_token_id": 0}
    settings = transformers.AutoConfig.for_model("mamba", num_hidden_layers=1, hidden_size=6, **tokens)
    transformers.AutoModelForCausalLM.from_config(settings).save_pretrained(tmp_path / "model")
    save_tokenizer(tmp_path / "model", 5)
    corpus = {"train": ["abcd" * 20, "dcab" * 9], "validation": ["abba" * 7]}
    data = TextLanesDataModule(corpus, tokenizer=str(tmp_path / "model"), num_lanes=3, k1=4)
    model = LitLanguageModel(HuggingFaceCore(pretrained=str(tmp_path / "model")), k1=4)
    trainer = Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(model, data)
    trainer.save_checkpoint(tmp_path / "saved.ckpt")
    shutil.rmtree(tmp_path / "model")
    again = LitLanguageModel.load_from_checkpoint(tmp_path / "saved.ckpt")
    assert again.language_model.core.init_args == model.language_model.core.init_args
    assert_close(again.language_model.state_dict(), model.language_model.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model_type": "bert"}, "model_type='bert': must be one of mamba, falcon_mamba, mamba2, rwkv, xlstm$"),
        ({"model_type": "jamba"}, "model_type='jamba': .*the state would grow"),
        ({"model_type": "recurrent_gemma"}, "starts the convolution again"),
        ({"model_type": "mamba", "config": {"states": 3}}, "config.states: not a setting of transformers' mamba"),
        ({"model_type": "mamba2", "config": {"num_heads": 5}}, r"(?s)refused by transformers .*must equal num_heads"),
        ({"model_type": "rwkv", "num_layers": 1}, "num_layers=1: RWKV needs 2 or more"),
        ({"model_type": "xlstm", "config": {"mode": "train"}}, "config.mode='train': must be 'inference'"),
        ({"hidden_size": 0}, "hidden_size=0"),
        ({"config": {"hidden_size": 48}}, "config.hidden_size: this is the argument hidden_size; set it there"),
        ({"config": {"num_hidden_layers": 3}}, "config.num_hidden_layers: this is the argument num_layers"),
        ({"pretrained": "/no/such/folder"}, "pretrained='/no/such/folder': neither a folder"),
    ],
)
def test_what_cannot_be_carried_or_built_is_refused(transformers, arguments, message, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=message):
        HuggingFaceCore(**arguments)


def test_a_missing_library_or_another_version_is_an_error(monkeypatch):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    for version, message in ((lambda name: "4.57.6", "4.57.6 is installed"), (missing, "needs the package")):
        monkeypatch.setattr(hugging_face.metadata, "version", version)
        with pytest.raises(InputError, match=f"{message}.*pip install 'transformers>="):
            HuggingFaceCore()


def test_the_versions_are_those_of_the_extra():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    least, limit = (".".join(map(str, version)) for version in hugging_face.VERSIONS)
    assert project["project"]["optional-dependencies"]["huggingface"] == [f"transformers>={least},<{limit}"]


@pytest.mark.parametrize(
    ("size", "config", "heads"),
    [
        (32, {}, (1, 64, 1)),
        (256, {}, (8, 64, 8)),
        (30, {}, (1, 60, 1)),
        (24, {"n_groups": 3, "expand": 4}, (3, 32, 3)),
    ],
)
def test_the_heads_of_mamba2_fit_the_size(transformers, size, config, heads):
    core = HuggingFaceCore("mamba2", size, 1, config | {"state_size": 4})
    mixer = core.blocks[0].mixer
    assert (mixer.num_heads, mixer.head_dim, mixer.n_groups) == heads
    outputs, _ = core(torch.randn(2, 3, size), core.initial_state(2))
    assert outputs.shape == (2, 3, size)
