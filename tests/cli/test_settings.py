"""What of a checkpoint's settings is taken: nothing that has code imported which the user has not named."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, Optional, Union

import pytest
from jsonargparse import ArgumentParser
from torch import nn

from lit_tbptt import InputError
from lit_tbptt.cli.settings import checkpoint_settings, class_options
from lit_tbptt.files.schema import VERSION


class Part:
    """A dataclass of sorts: a group of options."""

    def __init__(self, fn: Callable | None = None, size: int = 3):
        self.fn = fn


def parser():
    made = ArgumentParser()
    hints = {
        "act": nn.Module | None,
        "acts": list[nn.Module] | None,
        "text": str | nn.Module | None,
        "kind": type[nn.Module] | None,
        "function": Callable | None,
        "path": Path | None,
        "paths": Sequence[str] | None,
        "sizes": Optional[list[int]],  # noqa: UP045 - as users write it
        "either": Union[str, int, None],  # noqa: UP007 - likewise
        "word": Literal["a", "b"],
        "anything": dict[str, Any] | None,
    }
    for name, hint in hints.items():
        made.add_argument(f"--model.{name}", type=hint)
    made.add_class_arguments(Part, "model.part")
    return made


OPTIONS = class_options(parser())


def settings_of(model, named=()):
    checkpoint = {"lit_tbptt": {"version": VERSION, "settings": {"model": model}}}
    return checkpoint_settings(checkpoint, True, set(named), OPTIONS)


HOSTILE = {
    "a class": {"act": {"class_path": "evil.A"}},
    "a class's name": {"act": "evil.A"},
    "in a list": {"acts": [{"class_path": "torch.optim.SGD"}, {"class_path": "evil.A"}]},
    "in the arguments of a known class": {"act": {"class_path": "torch.optim.SGD", "init_args": {"lr": "evil.a"}}},
    "in a list of arguments": {"act": {"class_path": "torch.optim.SGD", "init_args": {"lr": ["evil.a"]}}},
    "in further arguments": {"act": {"class_path": "torch.optim.SGD", "dict_kwargs": {"lr": "evil.a"}}},
    "below a class that was named": {"act": {"class_path": "mine.B", "init_args": {"x": {"class_path": "evil.A"}}}},
    "a function": {"function": "os.system"},
    "a type": {"kind": "evil.A"},
    "where text may stand too": {"text": "evil.A"},
    "where anything may stand": {"anything": {"x": [{"class_path": "evil.A"}]}},
    "in a group": {"part.fn": "evil.a"},
    "a file of settings": {"act": "folder/evil.yaml"},
    "a file in the working directory": {"act": "evilfile"},
    "ours, but not public": {"act": {"class_path": "lit_tbptt.cli.app.LitCLI"}},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_could_import_code_is_refused(case, in_tmp_path):
    Path("evilfile").write_text("class_path: evil.A\n")
    with pytest.raises(InputError, match=r"not imported just because .* it; if you trust it, name it: --model\."):
        settings_of(HOSTILE[case], named=["mine.B"])


HONEST = {
    "path": "a/b.wav",
    "paths": ["a.wav", "b.wav"],
    "sizes": [1, 2],
    "either": "x.y",
    "word": "a",
    "anything": {"data_files": ["a.txt"], "name": "x.y"},
    "act": {"class_path": "lit_tbptt.LSTM", "init_args": {"hidden_size": 3, "nonlinearity": "tanh"}},
    "text": "word",
}


def test_what_is_plain_or_known_or_named_is_taken():
    assert settings_of(HONEST) == {f"model.{name}": value for name, value in HONEST.items()}
    own = {"act": {"class_path": "mine.B", "init_args": {"x": {"class_path": "mine.C"}}}, "function": "mine.f"}
    assert settings_of(own, named=["mine.B", "mine.C", "mine.f"]) == {f"model.{key}": own[key] for key in own}


def test_what_is_given_now_is_not_taken_from_the_checkpoint():
    assert settings_of({"function": "mine.f", "word": "b"}, named=["--model.function"]) == {"model.word": "b"}


@pytest.mark.parametrize(("path", "size"), [("lit_tbptt.LSTM", 5), ("lit_tbptt.GRU", 3)])
def test_a_core_is_described_as_it_was_built(path, size):
    settings = {"model": {"core": {"class_path": path, "init_args": {"hidden_size": 3}}}}
    built = {"core": {"class_path": "lit_tbptt.LSTM", "init_args": {"hidden_size": 5}}}
    checkpoint = {"lit_tbptt": {"version": VERSION, "settings": settings}, "hyper_parameters": built}
    kept = checkpoint_settings(checkpoint, True, set(), {"model.core": True})
    assert kept["model.core"]["init_args"] == {"hidden_size": size}
