"""Callbacks that decide which weights are trained: a resumed run trains the same."""

import pytest
import torch
from lightning.pytorch.callbacks import BaseFinetuning, ModelPruning
from resuming import WINDOWS, everything, fit_text, same


class Unfreezing(BaseFinetuning):
    """Trains the embedding from the second epoch on."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.model.embedding)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.model.embedding, optimizer)


def of_the_unfrozen(parameters):
    return torch.optim.AdamW([parameter for parameter in parameters if parameter.requires_grad], 0.01)


@pytest.mark.parametrize("stop", [WINDOWS - 4, WINDOWS, WINDOWS + 3])
def test_what_was_unfrozen_stays_so_in_a_resumed_run(stop, tmp_path):
    options = {"optimizer": of_the_unfrozen}
    trainer, module, _ = fit_text(tmp_path / "whole" / "version_0", 4, None, callbacks=[Unfreezing()], **options)
    expected, folder = everything(trainer, module), tmp_path / "run" / "version_0"
    fit_text(folder, 4, None, stop, callbacks=[Unfreezing()], **options)
    resume = folder / "checkpoints" / "last.ckpt"
    trainer, module, _ = fit_text(folder, 4, None, resume=resume, callbacks=[Unfreezing()], **options)
    assert all(parameter.requires_grad for parameter in module.parameters())
    same(everything(trainer, module), expected)


def test_a_resume_says_that_pruned_weights_are_trained_again(tmp_path):
    fit_text(tmp_path, 4, None, WINDOWS + 3, callbacks=[ModelPruning("l1_unstructured", amount=0.3)])
    resume, pruning = tmp_path / "checkpoints" / "last.ckpt", ModelPruning("l1_unstructured", amount=0.3)
    with pytest.warns(UserWarning, match="ModelPruning: Lightning saves pruned weights without their masks"):
        fit_text(tmp_path, 4, None, WINDOWS + 4, resume=resume, callbacks=[pruning])
