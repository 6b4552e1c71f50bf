"""Dynamic evaluation from the command line: a column at the end of a fit, and what test and validate print."""

from command_line import FIRST_RUN, RUN
from oscillator import Oscillator, WavesData

from lit_tbptt.cli import LitCLI, main
from lit_tbptt.files.checkpoint import read_checkpoint

DYNAMIC = ["--model.evaluation=DynamicEvaluation", "--model.evaluation.lr=0.01"]


def table(text):
    rows = [line.split("  ") for line in text.splitlines()]
    rows = [[part.strip() for part in row if part.strip()] for row in rows]
    start = max(number for number, row in enumerate(rows) if row and row[-1].startswith(("test", "validation")))
    return rows[start], {row[0]: row[1:] for row in rows[start + 1 : start + 6] if row}


def test_a_fit_ends_with_a_column_more_and_test_uses_it(words_folder, in_tmp_path, capfd):
    main(["fit", f"--data.path={words_folder}", *FIRST_RUN, *DYNAMIC])
    said = capfd.readouterr().out
    columns, rows = table(said)
    assert columns == ["validation", "test", "test, dynamic"]
    static, dynamic = rows["nats_per_token"][1:]
    assert static != dynamic
    assert rows["num_targets"][1] == rows["num_targets"][2]
    compared = {line.rpartition(" ")[0].strip() for line in said.splitlines() if "xz" in line or "this model" in line}
    assert {"this model", "this model, dynamic", "xz", "xz after training text"} <= compared
    (kept,) = (RUN / "checkpoints").glob("*.gradients")
    before = read_checkpoint(RUN / "checkpoints" / "best.ckpt")["state_dict"]
    main(["test", f"--ckpt_path={kept.with_suffix('.ckpt')}"])
    again, of_test = table(capfd.readouterr().out)
    assert again == ["test, dynamic"]
    assert of_test["nats_per_token"] == [dynamic]
    main(["test", f"--ckpt_path={kept.with_suffix('.ckpt')}", "--model.recompute_every=3"])
    assert table(capfd.readouterr().out) == (again, of_test)  # each target is counted once
    main(["test", f"--ckpt_path={kept.with_suffix('.ckpt')}", "--model.evaluation=null"])
    again, of_test = table(capfd.readouterr().out)
    assert (again, of_test["nats_per_token"]) == (["test"], [static])
    after = read_checkpoint(RUN / "checkpoints" / "best.ckpt")["state_dict"]
    assert all((after[name] == value).all() for name, value in before.items())


def test_a_run_is_not_lost_where_the_evaluation_cannot_be_made(in_tmp_path, capfd):
    options = ["fit", "--trainer.max_steps=4", "--trainer.accelerator=cpu", "--data.k1=5", "--model.k1=5", *DYNAMIC]
    LitCLI(Oscillator, WavesData, [option for option in options if "data.k1" not in option])
    said = capfd.readouterr().out
    assert "no dynamic evaluation: evaluation: needs the train split" in said
    assert table(said)[0] == ["validation"]
