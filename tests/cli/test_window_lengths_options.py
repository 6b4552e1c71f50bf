"""Windows of varying length from the command line."""

import pytest
from command_line import RUN, curve, equal, last, refused, trained

from lit_tbptt import NormalLengths, TextLanesDataModule
from lit_tbptt.cli import main
from lit_tbptt.files.checkpoint import read_checkpoint

DRAWN = [
    "--data.window_lengths=NormalLengths",
    "--data.window_lengths.mean=3",
    "--data.window_lengths.deviation=1.5",
    "--data.window_lengths.least=1",
    "--trainer.log_every_n_steps=1",
]


@pytest.mark.slow
def test_a_run_is_continued_from_its_checkpoint_alone(first_run, caplog):
    with caplog.at_level("INFO"):
        main([*first_run, *DRAWN])
    assert "half_probability=0.05, seed=1): windows of 1 to 5 tokens, 2.5 on average; 2.16 % of 100,000" in caplog.text
    assert "3 lanes; windows of up to 5 tokens, the first ones:" in caplog.text
    whole, expected = trained(curve()), last()
    counts = [int(row["tokens"]) for row in whole]
    # The first windows of 3 lanes.
    lengths = NormalLengths(3, 1.5, 1)(0, 0, 6).clip(max=5).cumsum()
    assert counts[:6] == (3 * lengths).tolist()
    main([*first_run, *DRAWN, "--trainer.max_steps=7", "--run_name=stopped"])
    stopped = RUN.parent / "stopped"
    main(["fit", f"--ckpt_path={stopped}/checkpoints/last.ckpt", "--trainer.max_steps=20"])
    assert trained(curve(stopped)) == whole
    equal(read_checkpoint(stopped / "checkpoints" / "last.ckpt"), expected)
    for changed, saying in (("=null", "None, where"), (".deviation=2", "NormalLengths(mean=3.0, deviation=2.0")):
        arguments = ["fit", f"--ckpt_path={stopped}/checkpoints/last.ckpt", "--trainer.max_steps=30"]
        assert f"data.window_lengths: {saying}" in refused(*arguments, f"--data.window_lengths{changed}")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.k1=2"], "data.k1=2 with data.window_lengths=NormalLengths(mean=3.0"),
        (["--data.document_reset=true"], "data.document_reset=True with data.window_lengths=NormalLengths("),
        (["--data.window_lengths.least=4"], "data.window_lengths.least=4: must be from 1 to mean=3.0"),
    ],
)
def test_what_does_not_go_with_drawn_lengths_is_refused(options, message, first_run):
    assert message in refused(*first_run, *DRAWN, *options)


def test_evaluation_has_windows_of_constant_length(words_folder, tmp_path):
    data = TextLanesDataModule(
        str(words_folder),
        tokenizer="word",
        num_lanes=3,
        k1=5,
        windows_per_batch=2,
        window_lengths=NormalLengths(3, 1, 1, seed=3),
        eval_num_lanes=2,
        cache_dir=str(tmp_path / "cache"),
    )
    data.setup("fit")
    lengths = [window.num_time_steps for batch in data.train_dataloader() for window in batch.windows]
    assert lengths[:-1] == NormalLengths(3, 1, 1, seed=3)(0, 0, len(lengths) - 1).clip(max=5).tolist()
    assert [window.inputs.shape for batch in data.val_dataloader() for window in batch.windows] == [(2, 10), (2, 8)]
    assert all(batch.step_factors is None for batch in data.val_dataloader())
