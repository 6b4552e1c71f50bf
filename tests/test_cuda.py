"""What only a GPU can show; skipped without one. Not run so far: no GPU has been at hand."""

import copy

import pytest
import torch
from awd_reference import core_step, layers_of, zeros
from letters import strided
from lightning.pytorch import Callback, Trainer, seed_everything
from processes import together
from tasks import OwnGRU
from torch.testing import assert_close

from lit_tbptt import (
    AWDLSTM,
    GRU,
    LSTM,
    RNN,
    InputError,
    LitLanguageModel,
    RecurrentLM,
    RunCheckpoint,
    Truncation,
    Window,
    shared_generator,
)
from lit_tbptt.data.text.tokenizers import CharTokenizer

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

TEXTS = ["".join(chr(97 + (i * j) % 11) for j in range(i * i % 23)) for i in range(40)]


class Norms(Callback):
    """Keeps the norm of the gradient after clipping."""

    def __init__(self):
        self.norms = []

    def on_step_end(self, trainer, module):
        self.norms.append(torch.stack([part.grad.norm() for part in module.parameters()]).norm().item())


class Waiting(Callback):
    """Makes every wait for the GPU an error, from step 5 to step 15."""

    def on_step_end(self, trainer, module):
        modes = {5: "error", 15: "default"}
        if trainer.global_step in modes:
            torch.cuda.set_sync_debug_mode(modes[trainer.global_step])


class Loop(OwnGRU):
    """A loop of small kernels, with dropout."""

    def initial_state(self, num_lanes):
        return (self.cell.bias_hh.new_zeros(num_lanes, self.output_size),)

    def forward(self, inputs, state):
        return super().forward(torch.nn.functional.dropout(inputs, 0.2, self.training), state)


def fit(folder, precision="32-true", max_steps=20, resume=None, devices=1, kind=Norms, core=None, **options):
    seed_everything(1, verbose=False)
    core = LSTM(16, 2, dropout=0.3) if core is None else core()
    model = LitLanguageModel(core, k1=4, k2=7, clip_norm=0.05, **options)
    model._build(CharTokenizer("abcdefghijk"))
    callback = kind()
    trainer = Trainer(
        max_steps=max_steps,
        accelerator="cuda",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision=precision,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[callback, RunCheckpoint(monitor="val/nats_per_token")],
    )
    share = {"local_lanes": range(trainer.global_rank * 3, trainer.global_rank * 3 + 3)} if devices > 1 else {}
    trainer.fit(model, strided(TEXTS, 6, 4, 4, **share), ckpt_path=resume)
    return getattr(callback, "norms", None), {name: value.cpu() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("core_class", [RNN, LSTM, GRU])
def test_cudnn_computes_what_the_cpu_does(core_class):
    core = core_class(13, 2, learned_initial_state=True, input_size=7)
    other = copy.deepcopy(core).cuda()
    inputs = torch.randn(3, 11, 7)
    found = []
    for module, given in ((core, inputs), (other, inputs.cuda())):
        outputs, state = module(given, module.initial_state(3))
        outputs.square().sum().backward()
        found.append((outputs.cpu(), state, [part.grad.cpu() for part in module.parameters()]))
    assert_close(found[0][0], found[1][0], rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(found[0][1].values(), found[1][1].values(), strict=True):
        assert_close(mine, theirs.cpu(), rtol=1e-4, atol=1e-5)
    assert_close(found[0][2], found[1][2], rtol=1e-3, atol=1e-4)


def test_dropped_weights_are_in_one_piece_for_cudnn_and_computed_as_the_paper_says():
    """cuDNN warns of weights in several pieces, and warnings are errors."""
    core = AWDLSTM(13, 3, input_size=7).cuda()
    inputs = torch.randn(3, 11, 7, device="cuda")
    core.noise, start = core.begin_window(3), [leaf.data_ptr() for leaf in core.parameters()]
    before, inside, after = core.forward_through(inputs, core.initial_state(3), 4)
    before.square().sum().backward()
    assert [leaf.data_ptr() for leaf in core.parameters()] == start
    other = copy.deepcopy(core).cpu()
    other.zero_grad()
    noise = {kind: [None if mask is None else mask.cpu() for mask in core.noise[kind]] for kind in core.noise}
    weights = dict(other.named_parameters())
    layers = [[weights[name] for name in names] for names in layers_of(other)]
    state, expected, states = zeros(layers, 3), [], []
    for x in inputs.cpu().unbind(1):
        x, state = core_step(x, state, layers, noise)
        expected.append(x)
        states.append(state)
    torch.stack(expected, 1).square().sum().backward()
    assert_close(before.cpu(), torch.stack(expected, 1), rtol=1e-4, atol=1e-5)
    for found, wanted in ((inside, states[3]), (after, states[-1])):
        for layer, (hidden, cell) in zip(found, wanted, strict=True):
            assert_close((layer["hidden"][:, 0].cpu(), layer["cell"][:, 0].cpu()), (hidden, cell), rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(core.parameters(), other.parameters(), strict=True):
        assert_close(mine.grad.cpu(), theirs.grad, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_dropped_weights_under_autocast(dtype):
    core = AWDLSTM(13, 3, input_size=7).cuda()
    inputs, state = torch.randn(3, 11, 7, device="cuda"), core.initial_state(3)
    core.noise = core.begin_window(3)
    with torch.autocast("cuda", dtype):
        outputs, after = core(inputs, state)
    assert {leaf.dtype for layer in after for leaf in layer.values()} == {torch.float32}
    assert_close(outputs.float(), core(inputs, state)[0], rtol=0.05, atol=0.02)
    outputs.float().sum().backward()
    assert all(leaf.grad.isfinite().all() for leaf in core.parameters())


def test_noise_that_ranks_share_is_drawn_on_the_gpu_from_a_seed_of_the_cpu():
    torch.manual_seed(3)
    before, gpu = torch.get_rng_state(), torch.cuda.get_rng_state()
    first = torch.rand(5, device="cuda", generator=shared_generator("cuda"))
    assert torch.equal(torch.cuda.get_rng_state(), gpu)
    torch.set_rng_state(before)
    assert torch.equal(torch.rand(5, device="cuda", generator=shared_generator("cuda")), first)


@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_clipped_norms_are_those_of_float32(precision, tmp_path):
    expected, _ = fit(tmp_path / "full")
    found, _ = fit(tmp_path / "half", precision)
    assert max(expected) == pytest.approx(0.05, rel=1e-3)
    assert found[5:] == pytest.approx(expected[5:], rel=0.01)  # the first steps under fp16 may be skipped


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_a_run_is_continued_to_the_same_bits(precision, tmp_path):
    _, whole = fit(tmp_path / "whole", precision)
    fit(tmp_path / "stopped", precision, 7)
    _, resumed = fit(tmp_path / "stopped", precision, 20, tmp_path / "stopped" / "checkpoints" / "last.ckpt")
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_between_two_entries_of_the_log_no_step_waits_for_the_gpu(precision, tmp_path):
    try:
        fit(tmp_path, precision, kind=Waiting)  # logs every 50 steps
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_as_one_and_are_continued(tmp_path):
    def stripped(found):
        return [weights for _, weights in found]

    whole = stripped(together(tmp_path, 2, fit, tmp_path / "whole", devices=2))
    together(tmp_path, 2, fit, tmp_path / "stopped", max_steps=7, devices=2)
    last = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    resumed = stripped(together(tmp_path, 2, fit, tmp_path / "stopped", resume=last, devices=2))
    for mine, theirs in zip(whole, resumed, strict=True):
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
    assert all(torch.equal(value, whole[1][name]) for name, value in whole[0].items())


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("options", [{}, {"windows_per_step": 2}, {"dropout_over_time": "shared"}])
def test_a_cuda_graph_changes_no_weight(precision, options, tmp_path):
    options = {"core": Loop, "output_dropout": 0.3, **options}
    norms, expected = fit(tmp_path / "plain", precision, **options)
    found_norms, found = fit(tmp_path / "graph", precision, cuda_graph=True, **options)
    assert found_norms == pytest.approx(norms, rel=1e-5)
    assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("core", [Loop, LSTM, GRU])
def test_a_run_with_a_cuda_graph_is_continued_to_the_same_bits(core, tmp_path):
    options = {"core": core if core is Loop else lambda: core(16), "output_dropout": 0.3, "cuda_graph": True}
    _, whole = fit(tmp_path / "whole", **options)
    fit(tmp_path / "stopped", max_steps=7, **options)
    _, resumed = fit(tmp_path / "stopped", resume=tmp_path / "stopped" / "checkpoints" / "last.ckpt", **options)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())


def test_a_window_that_waits_for_the_gpu_cannot_be_captured():
    class Waits(Loop):
        def forward(self, inputs, state):
            return super().forward(inputs * inputs.abs().max().item(), state)

    task = RecurrentLM(11, Waits()).cuda()
    ids = torch.randint(11, (3, 8), device="cuda")
    with pytest.raises(InputError, match=r"cannot be captured .*no \.item"):
        Truncation(8, cuda_graph=True)(task, Window(ids, ids))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_train_as_one_with_cuda_graphs(tmp_path):
    plain = together(tmp_path, 2, fit, tmp_path / "plain", devices=2, core=Loop)
    graphs = together(tmp_path, 2, fit, tmp_path / "graph", devices=2, core=Loop, cuda_graph=True)
    assert_close([weights for _, weights in graphs], [weights for _, weights in plain], rtol=1e-5, atol=1e-6)
