"""`cuda_graph` changes how windows are launched, and nothing else. In place of a GPU's graphs: `rerun`."""

import copy
import pickle

import pytest
import torch
from lightning.pytorch import Trainer
from tasks import Batches, Leaky, OwnGRU, Regression, windows_of
from torch import nn
from torch.testing import assert_close

from lit_tbptt import GRU, LSTM, InputError, RandomTruncation, RecurrentLM, Task, Truncation, Window
from lit_tbptt.tbptt.cuda_graph import Recordings

LANES, STEPS, VOCABULARY, WIDTH = 3, 46, 11, 7


def rerun(function, samples):
    """What `torch.cuda.make_graphed_callables` gives: every run uses the same buffers, also for its gradients."""
    for _ in range(4):
        outputs = function(*samples)
    buffers = [output.detach().clone() for output in outputs]
    gradients = [torch.zeros_like(sample) if sample.requires_grad else None for sample in samples]
    last = []

    class Rerun(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *inputs):
            for sample, given in zip(samples, inputs, strict=True):
                if sample.data_ptr() != given.data_ptr():
                    sample.copy_(given)
            with torch.enable_grad():
                last[:] = function(*samples)
            for buffer, output in zip(buffers, last, strict=True):
                buffer.copy_(output)
            return tuple(buffer.detach() for buffer in buffers)

        @staticmethod
        @torch.autograd.function.once_differentiable
        def backward(ctx, *given):
            ends = [(output, slope) for output, slope in zip(last, given, strict=True) if output.requires_grad]
            starts = [sample for sample in samples if sample.requires_grad]
            outputs, slopes = zip(*ends, strict=True)
            found = iter(torch.autograd.grad(outputs, starts, slopes, retain_graph=True, allow_unused=True))
            results = []
            for buffer in gradients:
                new = None if buffer is None else next(found)
                results.append(None if new is None else buffer.copy_(new).detach())
            return tuple(results)

    return Rerun.apply


class Counted:
    """Counts what is recorded, and what is run."""

    def __init__(self):
        self.recorded = self.run = 0

    def __call__(self, function, samples):
        self.recorded += 1
        replay = rerun(function, samples)

        def counted(*tensors):
            self.run += 1
            return replay(*tensors)

        return counted


class Loop(OwnGRU):
    """A loop of small operations, what graphs are for."""

    def initial_state(self, num_lanes):
        return (self.cell.bias_hh.new_zeros(num_lanes, self.output_size),)


CORES = {
    "lstm": lambda: LSTM(5, 2, learned_initial_state=True, input_size=WIDTH),
    "gru": lambda: GRU(5, input_size=WIDTH),
    "a user's": lambda: Loop(WIDTH),
    "nested state": Leaky,
}


def language_model(core):
    torch.manual_seed(1)
    dropout = {"embedding_dropout": 0.3, "output_dropout": 0.2, "dropout_over_time": "shared"}
    return RecurrentLM(VOCABULARY, CORES[core](), **dropout).double()


def truncations(*arguments):
    """One without recordings, and one with them, and their count."""
    recorded = Truncation(*arguments, cuda_graph=True)
    count = Counted()
    recorded.recordings = Recordings(count)
    return Truncation(*arguments), recorded, count


def token_windows(k1, resets=(), masked=True):
    ids = torch.randint(VOCABULARY, (LANES, STEPS + 1), generator=torch.Generator().manual_seed(3))
    mask = torch.rand(LANES, STEPS, generator=torch.Generator().manual_seed(4)) < 0.8
    for start in range(0, STEPS, k1):
        some, later = slice(start, start + k1), slice(start + 1, start + k1 + 1)
        reset = torch.tensor([False, True, False]) if start in resets else None
        yield Window(ids[:, :-1][:, some], ids[:, later], reset, mask[:, some] if masked else None)


def train(task, truncation, windows, windows_per_step=1, joined=False):
    """Returns losses, gradients, the carry and the random numbers of windows, with SGD steps between them."""
    torch.manual_seed(5)
    carry, found, pending = None, [], []
    for number, window in enumerate(windows, 1):
        loss, num_targets, carry, _ = truncation(task, window, carry)
        found += [loss.detach().clone(), torch.as_tensor(num_targets).clone()]
        pending.append(loss)
        del loss  # its graph is alive otherwise
        if not joined or number % windows_per_step == 0:
            carry = carry.detach()
            sum(pending).backward()
            pending.clear()
        if number % windows_per_step:
            continue
        with torch.no_grad():
            for weight in task.parameters():
                if weight.grad is not None:
                    found.append(weight.grad.clone())
                    weight -= 0.01 * weight.grad
                    weight.grad = None
    return [*found, *torch.utils._pytree.tree_leaves(carry.state), torch.get_rng_state()]


@pytest.mark.parametrize("core", CORES)
@pytest.mark.parametrize(("k1", "k2", "resets"), [(5, 5, (10,)), (4, 10, (12, 20)), (6, 12, ())])
def test_losses_gradients_and_carry_are_the_same(core, k1, k2, resets):
    plain, recorded, count = truncations(k1, k2)
    expected = train(language_model(core), plain, token_windows(k1, resets))
    found = train(language_model(core), recorded, token_windows(k1, resets))
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert 0 < count.recorded <= count.run
    if not resets:
        assert count.recorded == 1
        assert count.run == STEPS // k1 - 1  # the first one has no context, the last is shorter


def test_gradients_of_several_windows_are_added():
    plain, recorded, count = truncations(5)
    expected = train(language_model("a user's"), plain, token_windows(5), 3)
    assert_close(train(language_model("a user's"), recorded, token_windows(5), 3), expected, rtol=1e-12, atol=1e-12)
    assert count.recorded == 1


def test_windows_whose_graphs_are_joined_have_a_recording_each():
    plain, recorded, count = truncations(5)
    expected = train(language_model("a user's"), plain, token_windows(5), 3, joined=True)
    found = train(language_model("a user's"), recorded, token_windows(5), 3, joined=True)
    assert_close(found, expected, rtol=1e-12, atol=1e-12)
    # The carry is detached, and requires no gradient, before one of each three.
    assert count.recorded == 3
    assert count.run == 9


def test_what_is_returned_does_not_change_with_the_next_run():
    _, truncation, _ = truncations(5)
    task, windows = language_model("lstm"), list(token_windows(5))
    first = truncation(task, windows[0])
    kept = copy.deepcopy((first.loss.detach(), first.carry.detach()))
    first.loss.backward()
    gradients = [weight.grad for weight in task.parameters()]
    copies = [gradient.clone() for gradient in gradients]
    again = first.carry.detach()
    loss = first.loss.detach()
    del first
    for weight in task.parameters():
        weight.grad = None
    for window in windows[1:4]:
        truncation(task, window, again).loss.backward()
        for weight in task.parameters():
            weight.grad = None
    assert_close((loss, again), kept, rtol=0, atol=0)
    assert_close(gradients, copies, rtol=0, atol=0)


def test_frozen_weights_and_new_horizons_are_recorded_again():
    plain, recorded, count = truncations(5)
    tasks = [language_model("gru") for _ in range(2)]
    windows = list(token_windows(5, masked=False))
    for task, truncation in zip(tasks, (plain, recorded), strict=True):
        train(task, truncation, windows)
        task.head.weight.requires_grad_(False)
        train(task, truncation, windows)
        truncation.k2 = 10
        train(task, truncation, windows)
        task.core = copy.deepcopy(task.core)  # other memory
        train(task, truncation, windows)
    assert_close(tasks[1].state_dict(), tasks[0].state_dict(), rtol=1e-12, atol=1e-12)
    assert count.recorded == 4
    assert len(recorded.recordings._made) == 2


def test_without_gradients_nothing_is_recorded():
    _, truncation, count = truncations(5)
    with torch.no_grad():
        truncation(language_model("gru"), next(token_windows(5)))
    assert count.recorded == 0


def test_a_copy_has_no_recordings():
    _, truncation, count = truncations(5)
    truncation(language_model("gru"), next(token_windows(5)))
    for copied in (copy.deepcopy(truncation), pickle.loads(pickle.dumps(Truncation(5, cuda_graph=True)))):
        assert copied.recordings._made == {}
    assert count.recorded == 1


class Structured(Task, nn.Module):
    """Inputs in a dictionary, leaves for a whole sequence, a penalty, a number of targets that is no tensor."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([0.3, -0.2], dtype=torch.float64))
        self.unused = nn.Parameter(torch.ones(2, dtype=torch.float64))

    def initial_state(self, num_lanes):
        return [torch.zeros(num_lanes, dtype=torch.float64), torch.zeros(num_lanes, dtype=torch.long)]

    def window_loss(self, window, state):
        level, count, total = *state, 0
        for x in window.inputs["x"].unbind(1):
            level = torch.tanh(self.weight[0] * level + self.weight[1] * x + window.static)
            total = total + (level**2).sum()
        return total, window.num_time_steps * window.num_lanes, [level, count + 1], self.weight.pow(2).sum()


def test_any_structure_passes():
    plain, recorded, count = truncations(4, 9)
    x, static = torch.randn(LANES, STEPS, dtype=torch.float64), torch.randn(LANES, dtype=torch.float64)

    def run(truncation):
        task, carry, found = Structured(), None, []
        for start in range(0, STEPS, 4):
            window = Window({"x": x[:, start : start + 4]}, None, static=static)
            loss, num_targets, carry, penalty = truncation(task, window, carry)
            carry = carry.detach()
            (loss + penalty).backward()
            found += [loss.detach(), num_targets, carry, penalty.detach(), task.weight.grad.clone()]
            del loss, penalty  # their graph is alive otherwise
            assert task.unused.grad is None
        return found

    assert_close(run(recorded), run(plain), rtol=1e-12, atol=1e-12)
    assert count.recorded == 1


@pytest.mark.parametrize(
    ("options", "windows_per_batch"),
    [({}, 2), ({"k2": 9}, 2), ({"windows_per_step": 3}, 3), ({"update": lambda: RandomTruncation(0.4)}, 2)],
)
def test_the_updates_of_a_fit(options, windows_per_batch):
    x = torch.randn(LANES, 48)

    def fit(cuda_graph):
        torch.manual_seed(2)
        given = {name: value() if callable(value) else value for name, value in options.items()}
        module = Regression(k1=4, clip_norm=0.5, cuda_graph=cuda_graph, **given)
        count = Counted()
        if cuda_graph:
            module.truncation.recordings = Recordings(count)
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
        trainer = Trainer(max_epochs=2, accelerator="cpu", precision="64-true", **quiet)
        windows = windows_of(x.double(), x.cumsum(1).double(), 4, resets=[(5, 1)])
        trainer.fit(module, Batches(windows, windows_per_batch))
        assert (count.run > 12) == cuda_graph
        assert count.recorded == cuda_graph or {"k2", "update"} & options.keys()
        return module.state_dict()

    assert_close(fit(True), fit(False), rtol=1e-12, atol=1e-12)


class LBFGSRegression(Regression):
    def configure_optimizers(self):
        return torch.optim.LBFGS(self.parameters(), 0.3, max_iter=5)


def test_a_closure_runs_the_same_window_again():
    x = torch.randn(LANES, 24)

    def fit(cuda_graph):
        torch.manual_seed(2)
        module = LBFGSRegression(k1=4, cuda_graph=cuda_graph)
        count = Counted()
        if cuda_graph:
            module.truncation.recordings = Recordings(count)
        quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
        trainer = Trainer(max_epochs=1, accelerator="cpu", precision="64-true", **quiet)
        trainer.fit(module, Batches(windows_of(x.double(), x.cumsum(1).double(), 4)))
        assert (count.run > 6) == cuda_graph
        return module.state_dict()

    assert_close(fit(True), fit(False), rtol=1e-12, atol=1e-12)


def test_another_accelerator_is_refused():
    with pytest.raises(InputError, match=r"cuda_graph=True on the device cpu: only NVIDIA GPUs .*trainer.accelerator"):
        Truncation(5, cuda_graph=True)(language_model("gru"), next(token_windows(5)))


def test_recomputation_is_refused():
    with pytest.raises(InputError, match="cuda_graph=True with recompute_every=3"):
        Truncation(5, 5, 3, cuda_graph=True)


def test_what_cannot_be_captured_is_explained():
    def fails(function, samples):
        raise RuntimeError("operation not permitted when stream is capturing")

    truncation = Truncation(5, cuda_graph=True)
    truncation.recordings = Recordings(fails)
    with pytest.raises(InputError, match=r"cannot be captured \(operation not permitted .*no .item"):
        truncation(language_model("gru"), next(token_windows(5)))


def test_random_numbers_of_the_cpu_are_refused():
    _, truncation, _ = truncations(5)
    task = RecurrentLM(VOCABULARY, GRU(5, input_size=WIDTH), output_dropout=0.2)
    with pytest.raises(InputError, match="draws random numbers on the CPU"):
        truncation(task, next(token_windows(5)))
