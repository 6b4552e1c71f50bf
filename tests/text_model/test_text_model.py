"""A language model with its tokenizer: writing, scoring, and the folder it is kept in."""

import json

import pytest
import torch
from tasks import OwnGRU
from tokenizers import Tokenizer as Library
from tokenizers import models, pre_tokenizers
from torch.testing import assert_close

from lit_tbptt import GRU, LSTM, RNN, Adaptive, InputError, RecurrentLM, Stack
from lit_tbptt.data import make_tokenizer
from lit_tbptt.data.text.tokenizers import LibraryTokenizer
from lit_tbptt.text_model import TextModel

TEXTS = ["one two, 北京\nthree\n", "two é\n\nfour one one\n"]


def text_model(tokenizer="byte", core=None, **options):
    made = make_tokenizer(tokenizer, TEXTS) if isinstance(tokenizer, str) else tokenizer
    network = RecurrentLM(made.vocabulary_size, core or LSTM(6, input_size=5), **options)
    with torch.no_grad():
        network.embedding.weight.mul_(5)  # far enough from an even distribution to tell two texts from each other
    return TextModel(network.eval(), made, k1=4)


# Writing


@pytest.mark.parametrize("tokenizer", ["byte", "char", "word", "bpe"])
def test_one_prompt_gives_one_text_and_a_stream_the_same_in_pieces(tokenizer):
    model = text_model(tokenizer)
    options = {"num_tokens": 40, "temperature": 1.5, "top_k": 90, "top_p": 0.98, "seed": 3}
    (text,) = model.generate(["one"], **options)
    assert text
    assert model.generate("one", **options) == text
    pieces = list(model.stream("one", **options))
    assert len(pieces) > 10
    assert "" not in pieces
    assert "".join(pieces) == text


def test_a_stop_ends_each_text_for_itself():
    model = text_model("char")
    prompts = ["one", "two, ", "o"]
    whole = model.generate(prompts, 60, seed=3)
    assert all("e" in text for text in whole[:2])
    whole[2] = whole[2].replace("e", "o")
    stop = whole[0][7:9]
    stopped = model.generate(prompts, 60, seed=3, stop=stop)
    assert stopped == [text.partition(stop)[0] for text in model.generate(prompts, 60, seed=3)]
    assert stopped[0] == whole[0][: whole[0].index(stop)]
    assert "".join(model.stream("one", 60, seed=3, stop=stop)) == stopped[0]


def test_a_text_that_has_stopped_is_not_computed_on():
    model, steps = text_model("char"), []
    text = model.generate("one", 60, seed=3)
    model.network.core.register_forward_hook(lambda core, given, returned: steps.append(len(given)))
    model.generate("one", 60, seed=3, stop=text[7])
    assert len(steps) == text.index(text[7]) + 1


def test_characters_that_the_vocabulary_lacks_are_named():
    model = text_model("char")
    with pytest.raises(InputError, match=r"prompts: the model's vocabulary has no '!', 'z': .* the \d+ characters"):
        model.generate(["one", "z!"])
    with pytest.raises(InputError, match="no '!'"):
        next(model.stream("!"))
    assert text_model("byte").generate("z!", 3)
    assert text_model("word").generate("zwei", 3)


# Scoring


def in_one_call(model, text):
    """The cost of every token of a document after its beginning, which is an <eos>."""
    (ids,) = model.tokenizer.encode_documents([text])
    tokens = torch.tensor([model.tokenizer.eos, *ids.tolist()])
    logits, _ = model.network(tokens[None, :-1], model.network.initial_state(1))
    return -torch.log_softmax(logits[0], -1).gather(1, tokens[1:, None])[:, 0].detach()


@pytest.mark.parametrize("tokenizer", ["byte", "char", "word"])
def test_each_document_is_scored_from_its_own_start(tokenizer):
    model = text_model(tokenizer)
    model.network.double()
    for text, scored in zip(TEXTS, model.scores(TEXTS), strict=True):
        assert scored.tokens.tolist() == model.tokenizer.encode_documents([text])[0].tolist()
        assert scored.tokens[-1] == model.tokenizer.eos
        assert_close(scored.nats, in_one_call(model, text), rtol=0, atol=1e-10)
        assert scored.total.nats == pytest.approx(scored.nats.sum().item(), abs=1e-10)
        assert scored.total.num_tokens == len(scored.tokens)
        assert scored.total.num_bytes == len(text.encode())
        assert scored.total.num_unknown == 0


def library_with_unknowns():
    library = Library(models.WordLevel({"[UNK]": 0, "one": 1, "two": 2}, "[UNK]"))
    library.pre_tokenizer = pre_tokenizers.Whitespace()
    return LibraryTokenizer("mine", library)


@pytest.mark.parametrize(
    ("tokenizer", "text", "expected"),
    [("byte", "éz", 0), ("char", "one z!", 2), ("word", "one zwei\ntwo", 1), ("library", "one zwei! two", 2)],
)
def test_what_is_not_in_the_vocabulary_is_counted(tokenizer, text, expected):
    model = text_model(library_with_unknowns() if tokenizer == "library" else tokenizer)
    (scored,) = model.scores([text])
    assert scored.total.num_unknown == expected
    assert (scored.total.bits_per_byte is None) == (expected > 0)


def test_documents_are_read_one_by_one():
    read = []
    scores = text_model().scores(text for text in TEXTS if read.append(text) is None)
    next(scores)
    assert read == TEXTS[:1]


# The folder


MODELS = {
    "LSTM on bytes": lambda: text_model("byte", LSTM(7, 2, input_size=5, learned_initial_state=True)),
    "tied GRU on characters": lambda: text_model("char", GRU(6), tie_weights=True, output_dropout=0.25),
    "tied GRU, projected": lambda: text_model("char", GRU(6, input_size=4), tie_weights=True),
    "adaptive RNN on words": lambda: text_model("word", RNN(8), head=Adaptive([2, 4], 2.0)),
    "stack on bytes": lambda: text_model("byte", Stack([GRU(5, input_size=7), LSTM(4, input_size=12)], "dense", "rms")),
    "a library's tokenizer": lambda: text_model(library_with_unknowns(), GRU(6), dropout_over_time="shared"),
}


@pytest.mark.parametrize("name", MODELS)
def test_a_model_is_the_same_from_its_folder(name, tmp_path):
    model = MODELS[name]()
    model.carry_state = False
    model.save_pretrained(tmp_path / "model", {"val/perplexity": 5.25})
    again = TextModel.from_pretrained(tmp_path / "model")
    assert (again.k1, again.carry_state, again.network.training) == (4, False, False)
    assert again.tokenizer.describe() == model.tokenizer.describe()
    assert type(again.network.core) is type(model.network.core)
    for option in ("embedding_dropout", "output_dropout", "dropout_over_time"):
        assert getattr(again.network, option) == getattr(model.network, option)
    expected = model.network.state_dict()
    for key, value in again.network.state_dict().items():
        assert torch.equal(value, expected.pop(key))
    assert not expected
    assert again.generate("one", 20) == model.generate("one", 20)
    files = {path.name for path in (tmp_path / "model").iterdir()}
    assert files - {"tokenizer.json"} == {"config.json", "model.safetensors", "README.md"}
    assert "| val/perplexity | 5.25 |" in (tmp_path / "model" / "README.md").read_text()
    again.save_pretrained(tmp_path / "model")
    assert "5.25" not in (tmp_path / "model" / "README.md").read_text()


def test_a_librarys_tokenizer_can_be_read_by_the_library(tmp_path):
    text_model(library_with_unknowns()).save_pretrained(tmp_path)
    assert Library.from_file(str(tmp_path / "tokenizer.json")).encode("one zwei two").ids == [1, 0, 2]


def test_a_core_of_ones_own_is_given_and_never_imported(tmp_path):
    model = text_model(core=OwnGRU(7))
    model.save_pretrained(tmp_path)
    assert TextModel.from_pretrained(tmp_path, OwnGRU).generate("a", 9) == model.generate("a", 9)
    assert TextModel.from_pretrained(tmp_path, OwnGRU(7)).generate("a", 9) == model.generate("a", 9)
    with pytest.raises(InputError, match=r"core is a \w+\.OwnGRU, which is not imported just because"):
        TextModel.from_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"core=GRU: the checkpoint's core is a \w+\.OwnGRU; give that class"):
        TextModel.from_pretrained(tmp_path, GRU)
    with pytest.raises(InputError, match="its weights are not this core's"):
        TextModel.from_pretrained(tmp_path, OwnGRU(8))


def test_arguments_that_are_no_plain_values_are_named(tmp_path):
    core = OwnGRU(6)
    core.init_args = {"size": torch.tensor(6)}
    with pytest.raises(InputError, match="takes plain values"):
        text_model(core=core).save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"config\.json"):
        TextModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(InputError, match="not of this package"):
        TextModel.from_pretrained(tmp_path)
    (tmp_path / "config.json").write_text("[")
    with pytest.raises(InputError, match="not a folder that save_pretrained"):
        TextModel.from_pretrained(tmp_path)
    with pytest.raises(InputError, match="no such folder here"):  # and the tests are offline
        TextModel.from_pretrained("nobody/no-such-model")
    text_model().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"model\.safetensors: cannot be read"):
        TextModel.from_pretrained(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        text_model().save_pretrained(tmp_path / "file")
