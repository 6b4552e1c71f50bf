import pytest
import torch
from command_line import RUN, curve
from lightning.pytorch import Trainer
from loops import batches
from tasks import Regression

from lit_tbptt import InputError, TextSamples
from lit_tbptt.cli import main


def test_samples_are_written_and_training_is_left_as_it_is(first_run, caplog):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    main([*first_run, "--run_name=plain"])
    options = ["--trainer.callbacks=TextSamples", "--trainer.callbacks.every_n_steps=8"]
    prompts = ["--trainer.callbacks.prompts=['', 'w1 w2']", "--trainer.callbacks.num_tokens=7"]
    main([*first_run, *options, *prompts, "--run_name=samples"])
    for heading in ("step 8, sample 0:", "step 8, sample 1:", "step 16, sample 0:", "step 16, sample 1:"):
        assert heading in caplog.text
    plain, samples = RUN.with_name("plain"), RUN.with_name("samples")
    assert curve(samples) == curve(plain)
    weights, expected = (torch.load(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (samples, plain))
    assert all(torch.equal(weights[name], value) for name, value in expected.items())
    events = EventAccumulator(str(samples / "by_step")).Reload()
    texts = [event for tag in events.Tags()["tensors"] if "sample/1" in tag for event in events.Tensors(tag)]
    assert [event.step for event in texts] == [8, 16]
    assert texts[0].tensor_proto.string_val[0].decode().startswith("w1 w2")


def test_a_task_without_text_and_no_steps_are_refused(in_tmp_path):
    trainer = Trainer(callbacks=[TextSamples()], accelerator="cpu", logger=False, max_epochs=1)
    with pytest.raises(InputError, match="TextSamples with a Regression"):
        trainer.fit(Regression(), batches(3))
    with pytest.raises(InputError, match="every_n_steps=0"):
        TextSamples(0)
