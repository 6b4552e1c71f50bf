"""The command generate: prompts from everywhere, texts to the terminal and to files."""

import io
import json
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from command_line import FIRST_RUN, RUN, refused
from processes import start, status_of, wait_until

from lit_tbptt.cli import main
from lit_tbptt.files.checkpoint import read_checkpoint
from lit_tbptt.text_model import TextModel


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with text, and runs of two steps on its characters (the newest) and its words."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text("one two three, 北京 é\ntwo three\n\nthree four\n" * 9)
    options = ["--data.path=text.txt", *FIRST_RUN, "--trainer.max_steps=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["fit", *options, "--run_name=words"])
        main(["fit", *options, "--run_name=characters", "--data.tokenizer=char", "--model.core.hidden_size=9"])
    return folder


@pytest.fixture(autouse=True)
def _in_a_copy_of_nothing(trained, tmp_path, monkeypatch):
    (tmp_path / "runs").symlink_to(trained / "runs")
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def written(capfd):
    """Runs generate and returns what it printed."""

    def written(*options):
        capfd.readouterr()
        main(["generate", "--ckpt_path=last", "--num_tokens=30", *options])
        return capfd.readouterr().out

    return written


@pytest.fixture
def model():
    return TextModel.from_checkpoint(read_checkpoint(RUN.with_name("characters") / "checkpoints" / "last.ckpt"))


def test_one_prompt_and_several_give_the_same_texts(written, model):
    options = {"num_tokens": 30, "temperature": 0.8, "seed": 1}
    alone, other = model.generate(["two", "o"], **options)
    assert written("--prompt=two") == f"two{alone}\n"
    assert written('--prompt=["two", "o"]') == f"two{alone}\no{other}\n"
    assert written("--prompt", "two", "--top_p=0.6", "--temperature=1.5", "--top_k=9", "--seed=4") == (
        f"two{model.generate('two', 30, 1.5, 9, 4, 0.6)}\n"
    )
    stop = alone[11]
    assert written("--prompt=two", f"--stop={stop}") == f"two{alone[: alone.index(stop)]}\n"


def test_prompts_come_from_the_standard_input(written, model, monkeypatch):
    text = "two\nthree é\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{text}\n".encode())))
    assert written("--prompt", "-") == f"{text}{model.generate(text, 30, 0.8, seed=1)}\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"two\xff")))
    assert "prompt: byte 3 of the standard input is not UTF-8" in refused("generate", "--ckpt_path=last", "--prompt=-")


@pytest.mark.parametrize("prompt", ["[", "[1, 2]", "- two", "null", "{}", "o: two", "#", "12"])
def test_a_prompt_that_looks_like_something_else_is_text(prompt, capfd):
    main(["generate", "--ckpt_path=last", "--run_name=words", f"--prompt={prompt}", "--num_tokens=0"])
    assert capfd.readouterr().out == f"{prompt}\n"


def rows(path):
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


def test_prompts_come_from_a_file_and_texts_go_to_one(written, model):
    prompts = ["two", "", "three é", "o " * 9] + ["t"] * 66
    Path("prompts.txt").write_text("\n".join(prompts) + "\n")
    expected = [model.generate(text, 30, 0.8, seed=1 + i) for i, text in enumerate(prompts)]
    assert written("--prompt_file=prompts.txt", "--out=texts.jsonl") == ""
    assert rows("texts.jsonl") == [{"prompt": a, "text": b} for a, b in zip(prompts, expected, strict=True)]
    assert "é" in Path("texts.jsonl").read_text()
    whole = [a + b for a, b in zip(prompts, expected, strict=True)]
    assert written("--prompt_file=prompts.txt") == "\n".join(whole) + "\n"
    again = [{"prompt": "three\n", "number": 7}, {"prompt": "two"}]
    Path("prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in again))
    written("--prompt_file=prompts.jsonl", "--out=again.jsonl")
    assert [row["prompt"] for row in rows("again.jsonl")] == ["three\n", "two"]
    written("--prompt=two", "--out=texts.jsonl")
    assert rows("texts.jsonl") == [{"prompt": "two", "text": expected[0]}]


REFUSED = {
    "two sources": (["--prompt=a", "--prompt_file=ok.txt"], "prompt and prompt_file: give one of them"),
    "no prompt": (["--prompt=[]"], r"prompt=[]: at least one"),
    "no file": (["--prompt_file=none.txt"], "prompt_file: none.txt: No such file"),
    "an empty file": (["--prompt_file=empty.txt"], "prompt_file: empty.txt is empty"),
    "other text": (["--prompt_file=latin.txt"], "prompt_file: latin.txt: byte 3 is not UTF-8 text"),
    "no JSON": (["--prompt_file=broken.jsonl"], "broken.jsonl, line 2: not JSON"),
    "no key": (
        ["--prompt_file=other.jsonl"],
        "other.jsonl, line 1: must be an object with a text under the key prompt",
    ),
    "out over in": (["--prompt_file=ok.txt", "--out=./ok.txt"], "out: ./ok.txt is read as well"),
    "out into nowhere": (["--prompt=o", "--out=no/such/folder.jsonl"], "out: no/such/folder.jsonl: No such file"),
    "a character": (["--prompt=two!"], "the model's vocabulary has no '!'"),
    "top_p": (["--top_p=1.5"], "top_p=1.5: must be above 0 and at most 1"),
    "stop": (["--stop="], "stop=''"),
    "num_tokens": (["--num_tokens=-1"], "num_tokens=-1: must be 0 or more"),
    "no number": (["--top_k=many"], "top_k"),
    "no option": (["--topk=3"], "--topk: there is no such option; did you mean --top_k?"),
    "no option's name": (
        ["def"],
        "'def': an option begins with --, and its value follows it; did you mean --prompt def?",
    ),
    "an option of fit": (["--model.core=GRU"], "--model.core: there is no such option; did you mean --core?"),
    "an abbreviation": (["--temp=3"], "--temp: there is no such option"),
    "no such device": (["--device=abacus"], "device='abacus': cannot be used here"),
    "another core": (["--core=lit_tbptt.LSTM"], "core=LSTM: the checkpoint's core is a lit_tbptt.GRU; give that class"),
    "another core by its short name": (["--core=RNN"], "core=RNN: the checkpoint's core is a lit_tbptt.GRU"),
    "a misspelt core": (["--core", "gru"], "core='gru': no such class; did you mean GRU?"),
    "no core": (["--core=torch.nn.GRU"], "core='torch.nn.GRU': must be a class of the type RecurrentCore"),
    "seed": (["--seed=-1"], "seed=-1: must be from 0 to"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_one_message(case, capfd):
    Path("ok.txt").write_text("o\n")
    Path("empty.txt").write_text("")
    Path("latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    Path("broken.jsonl").write_text('{"prompt": "o"}\n{"prompt"\n')
    Path("other.jsonl").write_text('{"text": "o"}\n')
    options, message = REFUSED[case]
    found = refused("generate", "--ckpt_path=last", *options)
    assert message in found
    assert found.startswith("error: ")
    assert "\n" not in found
    assert capfd.readouterr().out == ""
    assert Path("ok.txt").read_text() == "o\n"


def test_a_core_of_this_package_may_be_named_as_in_training(written):
    assert written("--prompt=two", "--core", "GRU") == written("--prompt=two", "--core=lit_tbptt.GRU")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is one")
def test_a_gpu_that_is_not_there_is_one_message():
    assert "device='cuda': cannot be used here" in refused("generate", "--ckpt_path=last", "--device=cuda")


def test_words_that_the_vocabulary_lacks_are_read_as_unknown(capfd):
    main(["generate", "--ckpt_path=last", "--run_name=words", "--prompt=two zwei", "--num_tokens=4"])
    printed = capfd.readouterr()
    assert printed.out.startswith("two zwei ")
    assert "note: 1 of the 2 tokens of the prompt are not in the vocabulary: <unk>" in printed.err


def test_help_has_the_options_of_generate_and_no_others(capfd):
    with pytest.raises(SystemExit) as stopped:
        main(["generate", "--help"])
    assert stopped.value.code == 0
    printed = capfd.readouterr().out
    for option in ("ckpt_path", "prompt_file", "top_p", "stop", "out", "device"):
        assert f"--{option} " in printed
    assert "--trainer" not in printed
    assert "Sample only from the fewest most likely tokens" in printed


def written_in_a_process(*options):
    main(["generate", "--ckpt_path=last", *options])


def interrupted(tmp_path, has_begun, *options):
    """Returns what a process printed that got SIGINT when it had begun; its exit status is checked."""
    log = tmp_path / "log"
    process = start(written_in_a_process, *options, log=log, folder=tmp_path)
    wait_until(lambda: has_begun() or not process.is_alive())
    os.kill(process.pid, signal.SIGINT)
    assert status_of(process) == 130, log.read_text()
    assert "Traceback" not in log.read_text()
    return log.read_text()


def test_ctrl_c_keeps_what_was_printed(tmp_path, model):
    log = tmp_path / "log"
    printed = interrupted(
        tmp_path, lambda: log.exists() and len(log.read_text()) > 99, "--prompt=two", "--num_tokens=300000"
    )
    which, _, printed = printed.partition("\n")
    assert which.startswith("checkpoint: ")
    assert printed.endswith("\n")
    (begun,) = model.generate(["two"], len(printed), 0.8, seed=1)
    assert f"two{begun}".startswith(printed[:-1])


def test_ctrl_c_keeps_the_texts_that_are_finished(tmp_path, model):
    prompts, out = [f"{'two ' * (i % 7)}o" for i in range(6400)], tmp_path / "texts.jsonl"
    (tmp_path / "prompts.txt").write_text("\n".join(prompts))
    options = ["--prompt_file=prompts.txt", "--out=texts.jsonl", "--num_tokens=20"]
    assert interrupted(tmp_path, lambda: out.exists() and out.read_text().count("\n") > 64, *options).count("\n") == 1
    found = rows(out)
    assert 64 < len(found) < len(prompts)
    assert found[:64] == [
        {"prompt": prompt, "text": text}
        for prompt, text in zip(prompts[:64], model.generate(prompts[:64], 20, 0.8, seed=1), strict=True)
    ]
