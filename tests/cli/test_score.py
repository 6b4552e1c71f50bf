"""The command score: nats and bits per byte of files, beside those of `test`."""

import json
import math
from pathlib import Path

import pytest
import torch
from command_line import FIRST_RUN, RUN, refused

from lit_tbptt.cli import TextCLI, main
from lit_tbptt.files.checkpoint import read_checkpoint
from lit_tbptt.text_model import TextModel

TEXT = "one two three, 北京 é\ntwo three\n\nthree four\n" * 9


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Runs of two steps on bytes, characters and words, and on bytes without carried state."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "text.txt").write_text(TEXT)
    options = ["--data.path=text.txt", *FIRST_RUN, "--trainer.max_steps=2"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for tokenizer in ("byte", "char", "word"):
            main(["fit", *options, f"--run_name={tokenizer}", f"--data.tokenizer={tokenizer}"])
        main(["fit", *options, "--run_name=cut", "--data.tokenizer=byte", "--model.carry_state=false"])
    return folder


@pytest.fixture(autouse=True)
def files(trained, tmp_path, monkeypatch):
    """Two files, in a working directory with the runs."""
    (tmp_path / "runs").symlink_to(trained / "runs")
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_text("two three é\nfour 北\n")
    Path("b.txt").write_text(TEXT)
    return ["a.txt", "b.txt"]


@pytest.fixture
def scored(capfd):
    """Runs score and returns the lines of its table as words, by document."""

    def scored(*arguments):
        capfd.readouterr()
        main(["score", *arguments])
        lines = [line.split() for line in capfd.readouterr().out.splitlines()]
        assert lines[0] == ["tokens", "bytes", "nats", "nats/token", "bits/byte"]
        return {line[0]: line[1:] for line in lines[1:]}

    return scored


@pytest.mark.parametrize("name", ["byte", "char", "word", "cut"])
def test_a_file_costs_what_it_costs_as_a_test_split(name, tmp_path):
    path = RUN.with_name(name) / "checkpoints" / "last.ckpt"
    model = TextModel.from_checkpoint(read_checkpoint(path))
    model.network.double()
    for file in ("a.txt", "b.txt"):
        folder = tmp_path / f"{name} {file}"
        folder.mkdir()
        (folder / "test.txt").write_text(Path(file).read_text())
        options = [f"--data.path={folder}", "--data.eval_num_lanes=1", "--trainer.precision=64-true"]
        cli = TextCLI(["test", f"--ckpt_path={path}", *options])
        nats, num_targets = cli.model.evaluation._sums.tolist()
        (scored,) = model.scores([Path(file).read_text()])
        assert scored.total.num_tokens == num_targets
        assert scored.total.nats == pytest.approx(nats, abs=1e-10)
        if not scored.total.num_unknown:
            logged = cli.trainer.callback_metrics["test/bits_per_byte"].item()
            assert scored.total.bits_per_byte == pytest.approx(logged, rel=1e-6)


def test_documents_and_their_total_are_printed_and_written(scored, files):
    table = scored("--ckpt_path=last", "--run_name=byte", "--out=scores.jsonl", *files)
    assert list(table) == ["a.txt", "b.txt", "total"]
    written = [json.loads(line) for line in Path("scores.jsonl").read_text().splitlines()]
    assert [row["document"] for row in written] == files
    for row in written:
        assert row["bytes"] == len(Path(row["document"]).read_bytes())
        assert row["tokens"] == row["bytes"] + 1
        assert row["bits_per_byte"] == pytest.approx(row["nats"] / math.log(2) / row["bytes"], abs=1e-12)
        cells = [f"{row['tokens']:,}", f"{row['bytes']:,}", f"{row['nats']:,.2f}", f"{row['nats'] / row['tokens']:.4f}"]
        assert table[row["document"]] == [*cells, f"{row['bits_per_byte']:.4f}"]
    sums = {key: sum(row[key] for row in written) for key in ("tokens", "bytes", "nats")}
    assert table["total"][:3] == [f"{sums['tokens']:,}", f"{sums['bytes']:,}", f"{sums['nats']:,.2f}"]
    assert table["total"][4] == f"{sums['nats'] / math.log(2) / sums['bytes']:.4f}"
    assert list(scored("b.txt", "--ckpt_path=last", "--run_name=byte")) == ["b.txt"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("byte", [*([letter] for letter in "two three "), ["\ufffd"], ["\ufffd"], ["\n"]]),
        ("char", [[letter] for letter in "two three é\n"]),
        ("word", [["two"], ["three"], ["é"], ["<eos>"]]),
    ],
)
def test_tokens_are_rows_whose_nats_sum_up(name, expected, scored):
    scored("--ckpt_path=last", f"--run_name={name}", "a.txt", "--out=scores.jsonl")
    (whole,) = map(json.loads, Path("scores.jsonl").read_text().splitlines())
    scored("--ckpt_path=last", f"--run_name={name}", "a.txt", "--tokens=true", "--out=tokens.jsonl")
    found = [json.loads(line) for line in Path("tokens.jsonl").read_text().splitlines()]
    assert [[row["token"]] for row in found[: len(expected)]] == expected
    assert found[-1]["token"] == "<eos>"
    assert {row["document"] for row in found} == {"a.txt"}
    assert len(found) == whole["tokens"]
    assert sum(row["nats"] for row in found) == pytest.approx(whole["nats"], abs=1e-9)
    assert len({row["id"] for row in found if row["token"] == "t"}) <= 1


def test_where_text_is_unknown_there_are_no_bits_per_byte(capfd):
    Path("c.txt").write_text("zwei two\nthree drei\n")
    main(["score", "--ckpt_path=last", "--run_name=word", "a.txt", "c.txt", "--out=scores.jsonl"])
    lines = capfd.readouterr().out.splitlines()
    rows = [json.loads(line) for line in Path("scores.jsonl").read_text().splitlines()]
    assert lines[2].split()[-2:] == ["33.3%", "<unk>"]
    assert rows[1]["unknown_share"] == 2 / 6
    assert [row.get("bits_per_byte") for row in rows] == [None, None]  # 北 is not a word of its own
    assert lines[3].split()[0] == "total"
    assert lines[4].startswith("There are no bits per byte where text is not in the vocabulary")


REFUSED = {
    "no file": (["none.txt"], "score: none.txt: no such file"),
    "a folder": (["runs"], "score: runs is no file"),
    "an empty file": (["empty.txt"], "score: empty.txt is empty"),
    "not text": (["latin.txt"], "score: latin.txt: byte 3 is not UTF-8"),
    "nothing": ([], "FILES"),
    "tokens without a place": (["a.txt", "--tokens=true"], "tokens=true: needs out"),
    "out over a file": (["a.txt", "b.txt", "--out=./b.txt"], "out: ./b.txt is read as well"),
    "no such option": (["a.txt", "--data.path=x"], "--data.path: there is no such option"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_wrong_is_one_message(case):
    Path("empty.txt").write_text("")
    Path("latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    arguments, message = REFUSED[case]
    found = refused("score", "--ckpt_path=last", *arguments)
    assert message in found
    assert "\n" not in found
    assert Path("b.txt").read_text() == TEXT


def test_line_breaks_and_a_byte_order_mark_are_read_as_in_a_corpus(scored):
    Path("c.txt").write_bytes("\ufeff".encode() + Path("a.txt").read_bytes().replace(b"\n", b"\r\n"))
    table = scored("--ckpt_path=last", "--run_name=byte", "a.txt", "c.txt")
    assert table["a.txt"] == table["c.txt"]


def test_memory_does_not_grow_with_a_document(scored):
    path = RUN.with_name("byte") / "checkpoints" / "last.ckpt"
    model, lengths = TextModel.from_checkpoint(read_checkpoint(path)), []
    model.network.core.register_forward_hook(lambda core, given, returned: lengths.append(given[0].shape[1]))
    (scored_text,) = model.scores([TEXT])
    assert set(lengths[:-1]) == {5}  # k1
    assert sum(lengths) == scored_text.total.num_tokens
    assert torch.isfinite(scored_text.nats).all()
