"""The command plot: which runs it finds, what it draws and prints, and the picture at the end of a fit."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from command_line import FIRST_RUN, refused
from matplotlib.image import imread

from lit_tbptt.cli import main
from lit_tbptt.cli.curves import _figure, _limits
from lit_tbptt.cli.logged_run import find_runs, labels, read_run
from lit_tbptt.cli.plot import comparison

pytestmark = [pytest.mark.usefixtures("in_tmp_path"), pytest.mark.draws]

TEXT = """\
step,tokens,train/bits_per_byte,train/gradient_norm,train/lr,train/nats_per_token,train/tokens_per_second,val/bits_per_byte,val/nats_per_token
5,1000,7.5,2.5,0.002,5.25,900,,
8,1600,,,,,,4.75,3.5
10,2000,4.5,inf,0.004,3.25,1100,,
15,3000,3.5,0.5,0.003,nan,1300,,
16,3200,,,,,,3.75,2.75
20,4000,3.25,0.25,0.001,2.5,1200,,
24,4800,,,,,,4.25,3.125
25,9000,1
"""
TASK = """\
step,tokens,train/accuracy,train/lr,train/mse_loss,train/tokens_per_second,val/accuracy,val/mse_loss
4,700,0.5,0.1,0.75,2000000,,
4,700,,,,,0.625,0.5
9,1500,0.75,0.1,0.00025,3000000,,
9,1500,,,,,0.875,0.25
"""
SETTINGS = {
    "seed_everything": 1,
    "run_name": None,
    "trainer": {"max_steps": 20, "callbacks": None},
    "model": {"core": {"class_path": "lit_tbptt.LSTM", "init_args": {"hidden_size": 256}}, "clip_norm": 1.0},
    "checkpoint": {"monitor": None, "mode": "min"},
}
GRU = SETTINGS | {
    "run_name": "gru",
    "model": {"core": {"class_path": "lit_tbptt.GRU", "init_args": {"hidden_size": 192}}, "clip_norm": 1.0},
    "data": {"tokenizer": "word" * 20},
}


def write(folder, text=TEXT, settings=SETTINGS):
    folder = Path(folder)
    folder.mkdir(parents=True)
    # Cut off where the process was killed.
    (folder / "metrics.csv").write_bytes(text.rstrip("\n").encode() if text.endswith("25,9000,1\n") else text.encode())
    if settings is not None:
        (folder / "config.yaml").write_text(f"# lightning.pytorch==2.6.6\n{yaml.safe_dump(settings)}")
    return str(folder)


def plot(capfd, *arguments):
    main(["plot", *arguments])
    return capfd.readouterr().out


def test_one_run_is_drawn_into_its_folder_by_path_file_or_name(capfd):
    run = write("runs/default/version_0")
    picture = Path(run) / "curves.png"
    for name in (run, f"{run}/metrics.csv", "version_0", "default/version_0", str(Path(run).resolve())):
        folder = name if name.startswith("/") else run
        assert plot(capfd, name).endswith(f"curves: {folder}/curves.png\n")
        pixels = imread(picture)
        assert pixels.shape[1] > 1000
        assert pixels[:, :, 3].min() == 1  # opaque, whatever it is shown on
        assert pixels[0, 0].tolist() == pixels[-1, -1].tolist() == [1, 1, 1, 1]
        picture.unlink()
    assert not list(Path().rglob("*.part"))
    assert not Path("curves.png").exists()


def test_several_runs_are_compared(capfd):
    write("runs/default/version_0")
    write("runs/default/gru", TEXT.replace("2.75", "2.625"), GRU)
    printed = plot(capfd, "version_0", "gru", "version_0")
    table = """\
                           default/version_0                               default/gru
model.core                              LSTM                                       GRU
model.core.hidden_size                   256                                       192
data.tokenizer                             -  wordwordwordwordwordwordwordwordwordw...
best val/nats_per_token               2.7500                                    2.6250
best val/bits_per_byte                3.7500                                    3.7500
last train/nats_per_token             2.5000                                    2.5000
tokens/s, median                       1,150                                     1,150
tokens                                 4,800                                     4,800

curves: curves.png
"""
    assert printed == table
    assert Path("curves.png").exists()
    assert not Path("runs/default/gru/curves.png").exists()


def test_the_picture_goes_where_it_is_asked_to(capfd):
    run = write("one/two")
    for out, file in (("new/pictures", "new/pictures/curves.png"), ("x.svg", "x.svg"), ("y.pdf", "y.pdf")):
        assert f"curves: {file}\n" in plot(capfd, run, "--out", out)
        assert Path(file).stat().st_size > 5000
    assert Path("x.svg").read_bytes().startswith(b"<?xml")
    Path("file").write_text("")
    assert "out='file': file/curves.png cannot be written" in refused("plot", run, "--out=file")
    assert "out='a.JPG': must be a folder, or a file that ends in .png, .pdf, .svg" in refused(
        "plot", run, "--out=a.JPG"
    )


def test_a_task_of_ones_own_and_many_runs_in_rows(capfd):
    settings = {"checkpoint": {"monitor": "val/accuracy", "mode": "max"}}
    runs = [write(f"runs/own/{number}", TASK, settings | {"seed_everything": number}) for number in range(8)]
    lines = plot(capfd, *runs).splitlines()
    assert re.split(" {2,}", lines[0].strip()) == [
        "seed_everything",
        "best val/accuracy",
        "last train/mse_loss",
        "tokens/s, median",
        "tokens",
    ]
    assert lines[8].split() == ["own/7", "7", "0.8750", "0.00025", "2,500,000", "1,500"]
    figure = _figure(find_runs(runs))
    assert [axes.get_title("left") for axes in figure.axes] == ["loss", "learning rate", "tokens per second"]
    loss = figure.axes[0]
    assert loss.get_ylabel() == "mse loss"
    looks = {(line.get_color(), line.get_linestyle()) for line in loss.lines}
    assert len(looks) == 8
    assert len(figure.legends[0].legend_handles) == 8


def test_what_is_drawn():
    write("runs/default/version_0")
    (run,) = find_runs(["version_0"])
    axes = dict(zip(["loss", "bits", "rate", "norm", "speed"], _figure([run]).axes, strict=True))
    train, validation = axes["loss"].lines
    assert train.get_xydata().tolist() == [[1000, 5.25], [2000, 3.25], [4000, 2.5]]
    assert validation.get_xydata().tolist() == [[1600, 3.5], [3200, 2.75], [4800, 3.125]]
    assert train.get_color() != validation.get_color()
    assert axes["bits"].lines[1].get_ydata().tolist() == [4.75, 3.75, 4.25]
    assert axes["rate"].lines[0].get_ydata().tolist() == [0.002, 0.004, 0.003, 0.001]
    assert axes["norm"].lines[0].get_xydata().tolist() == [[1000, 2.5], [3000, 0.5], [4000, 0.25]]
    assert axes["norm"].get_yscale() == "log"
    assert axes["speed"].get_ylim()[0] == 0


def test_a_horizon_that_changed_is_drawn_as_steps():
    text = "step,tokens,horizon/k2,horizon/relative_bias,train/loss\n3,10,4,0.25,\n5,20,,,3\n6,40,9,,\n"
    axes = _figure([read_run(Path(write("a", text)) / "metrics.csv")]).axes
    assert [each.get_title("left") for each in axes] == ["loss", "k2", "relative bias, estimated"]
    (k2,), (bias,) = axes[1].lines, axes[2].lines
    assert k2.get_xydata().tolist() == [[10, 4], [40, 9]]
    assert k2.get_drawstyle() == "steps-post"
    assert bias.get_xydata().tolist() == [[10, 0.25]]


def test_the_axis_of_the_loss_leaves_out_the_fall_at_the_beginning():
    run = read_run(Path(write("a", "step,tokens,train/loss\n1,10,9\n5,100,3\n10,1000,2\n")) / "metrics.csv")
    low, high = _limits([run.metrics["train/loss"]])
    assert (low, high) == pytest.approx((1.94, 3.06))
    short = read_run(Path(write("c", "step,tokens,train/loss\n1,2,1\n2,4,4\n3,6,3.5\n")) / "metrics.csv")
    both = [each.metrics["train/loss"] for each in (run, short)]
    assert _limits(both) == pytest.approx((0.85, 3.65))  # of the short one its end, and what is lower
    run = read_run(Path(write("b", "step,tokens,train/loss\n1,10,0\n")) / "metrics.csv")
    assert _limits([run.metrics["train/loss"]]) == (-1, 1)


def test_names_are_as_long_as_they_must_be_and_any_letters():
    runs = find_runs([write(f"{place}/runs/_c$/一$_$") for place in ("here", "there")])
    assert labels(runs) == ["here/runs/_c$/一$_$", "there/runs/_c$/一$_$"]
    figure = _figure(runs)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == labels(runs)
    main(["plot", *(str(run.path) for run in runs)])


def test_settings_that_a_run_was_continued_with_are_shown():
    write("runs/default/version_0")
    folder = Path(write("runs/default/version_1"))
    for step, max_steps in ((100, 90), (20, 40)):
        changed = SETTINGS | {"trainer": {"max_steps": max_steps, "callbacks": None}}
        (folder / f"config_from_step_{step}.yaml").write_text(yaml.safe_dump(changed))
    write("runs/default/unknown", settings=None)
    line = comparison(find_runs(["version_0", "version_1", "unknown"])).splitlines()[1]
    assert re.split(" {2,}", line) == ["trainer.max_steps", "20", "20, 40 from step 20, 90 from step 100", "?"]


BAD = {
    "no RUN": ([], "RUNS: must be given"),
    "no such option": (["version_0", "--output", "x"], "--output: there is no such option"),
    "no abbreviations": (["version_0", "--ou", "x"], "--ou: there is no such option"),
    "nothing there": (
        ["nope"],
        r"RUN='nope': no such run folder.*; there are .*/same, runs/b/version_0$",
    ),
    "two of a name": (["same"], "RUN='same': there are several: runs/a/same, runs/b/same; give the path of one"),
    "runs below": (["runs/a"], r"RUN='runs/a': there is no metrics.csv .* are runs/a/same; name one"),
    "an empty folder": (["empty"], r"RUN='empty': there is no metrics.csv in this folder; nothing is logged yet"),
    "another csv": (
        ["other.csv"],
        "RUN='other.csv': other.csv is not the metrics.csv .*: it has no column tokens",
    ),
    "no csv": (["model.ckpt"], "RUN='model.ckpt': model.ckpt is not the metrics.csv of a run: "),
    "only a header": (["begun.csv"], "RUN='begun.csv': nothing is logged in begun.csv yet"),
    "no YAML": (["broken"], "RUN='broken': broken/config.yaml is not YAML"),
    "a URL": (["s3://bucket/run"], "local disks only"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_drawn_is_one_message(case):
    for name in ("runs/a/same", "runs/b/same", "runs/b/version_0", "broken"):
        write(name)
    Path("empty").mkdir()
    Path("broken/config.yaml").write_text("a: [1,\nb: }")
    Path("other.csv").write_text("step,epoch\n1,2\n")
    Path("model.ckpt").write_bytes(b"PK\x03\x04\xff\xfe\x00")
    Path("begun.csv").write_text("step,tokens,train/loss\n")
    arguments, message = BAD[case]
    said = refused("plot", *arguments)
    assert "\n" not in said
    assert re.search(message, said)
    assert not list(Path().rglob("curves.png"))


def test_the_help_is_short_and_its_own(capfd):
    with pytest.raises(SystemExit) as stopped:
        main(["plot", "--help"])
    printed = capfd.readouterr().out
    assert stopped.value.code == 0
    assert "runs [runs ...]" in printed
    assert "--out OUT" in printed
    assert len(printed.splitlines()) < 20


def test_without_matplotlib_a_message_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert "plot draws with matplotlib, which is missing: pip install" in refused("plot", write("run"))


def test_a_fit_leaves_its_curves_and_ends_well_where_they_cannot_be_drawn(words_folder, monkeypatch, capfd):
    command = [
        "fit",
        f"--data.path={words_folder}",
        *FIRST_RUN,
        "--trainer.max_steps=5",
        "--trainer.limit_test_batches=0",
    ]
    main(command)
    assert imread("runs/default/version_0/curves.png").shape[1] > 1000
    Path("runs/default/mine/curves.png").mkdir(parents=True)
    capfd.readouterr()
    main([*command, "--run_name=mine"])
    printed = capfd.readouterr()
    assert "curves.png could not be drawn (IsADirectoryError: " in printed.err
    assert "run folder: runs/default/mine" in printed.out
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    main(command)
    assert "curves" not in capfd.readouterr().err
    assert not Path("runs/default/version_1/curves.png").exists()


def test_neither_torch_nor_lightning_is_imported():
    run, root = write("run"), Path(sys.modules["lit_tbptt"].__file__).parent.parent
    script = f"""
import sys
sys.path.insert(0, {str(root)!r})
from lit_tbptt.cli import main
main(["plot", {run!r}])
print([name for name in ("torch", "lightning", "matplotlib.pyplot") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.endswith(f"curves: {run}/curves.png\n[]\n"), done.stderr
