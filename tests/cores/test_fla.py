"""FlaCore: the state goes in and out of a layer of `fla`. Without the package, a layer in its place shows the rest.

With the package and a GPU, each layer is compared to itself cut in time; not run so far, no GPU has been at hand.
"""

import sys
import types

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves, tree_map

from lit_tbptt import FlaCore, InputError

LANES, STEPS, WIDTH, HEADS = 3, 9, 32, 2


class GatedLinearAttention(nn.Module):
    """Gated linear attention as a loop, called as `fla.layers.GatedLinearAttention` is."""

    def __init__(self, mode="chunk", hidden_size=1024, num_heads=4, use_short_conv=False, conv_size=4, layer_idx=None):
        super().__init__()
        if hidden_size % num_heads:
            raise AssertionError(f"key dim must be divisible by num_heads of {num_heads}")
        self.num_heads, self.head_k_dim, self.head_v_dim = num_heads, hidden_size // num_heads, hidden_size // num_heads
        self.key_dim = self.key_dim_per_group = self.value_dim_per_group = hidden_size
        self.use_short_conv, self.conv_size, self.layer_idx = use_short_conv, conv_size, layer_idx
        self.q_proj, self.k_proj, self.v_proj, self.g_proj, self.o_proj = (
            nn.Linear(hidden_size, hidden_size, bias=False) for _ in range(5)
        )
        kernel = torch.linspace(-1, 1, conv_size)
        self.register_buffer("kernel", kernel)

    def _convolved(self, x, cache):
        padded = torch.cat([cache, x.transpose(1, 2)], 2)
        outputs = (padded.unfold(2, self.conv_size, 1)[:, :, 1:] * self.kernel).sum(-1).transpose(1, 2)
        if x.shape[1] == 1 and not torch.is_grad_enabled():
            return outputs, cache.copy_(padded[:, :, 1:])
        return outputs, padded[:, :, -self.conv_size :]

    def forward(self, hidden_states, past_key_values=None, use_cache=False):
        last = past_key_values[self.layer_idx]
        parts, caches = [self.q_proj(hidden_states), self.k_proj(hidden_states), self.v_proj(hidden_states)], None
        if self.use_short_conv:
            pairs = [self._convolved(x, cache) for x, cache in zip(parts, last["conv_state"], strict=True)]
            parts, caches = [x for x, _ in pairs], tuple(cache for _, cache in pairs)
        q, k, v, g = (x.unflatten(-1, (self.num_heads, -1)) for x in (*parts, self.g_proj(hidden_states).sigmoid()))
        state, outputs = last["recurrent_state"], []
        for time in range(hidden_states.shape[1]):
            state = state * g[:, time, :, None] + v[:, time, ..., None] * k[:, time, :, None]
            outputs.append((state @ q[:, time, ..., None]).squeeze(-1).flatten(1))
        update = {"recurrent_state": state.float() if state.dtype != torch.float64 else state, "conv_state": caches}
        past_key_values.update(layer_idx=self.layer_idx, offset=hidden_states.shape[1], **update)
        return self.o_proj(torch.stack(outputs, 1)), None, past_key_values


@pytest.fixture
def _replaced(monkeypatch):
    package, layers = types.ModuleType("fla"), types.ModuleType("fla.layers")
    layers.GatedLinearAttention = GatedLinearAttention
    monkeypatch.setitem(sys.modules, "fla", package)
    monkeypatch.setitem(sys.modules, "fla.layers", layers)
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def run(core, inputs, given, cuts):
    inputs = inputs.clone().requires_grad_()
    start = tree_map(lambda leaf: leaf.clone().requires_grad_(), given)
    outputs, state = [], start
    for piece in inputs.tensor_split(cuts, 1):
        out, state = core(piece, state)
        outputs.append(out)
    outputs = torch.cat(outputs, 1)
    loss = (outputs * torch.linspace(-1, 2, outputs.numel()).to(outputs).view_as(outputs)).sum()
    loss = loss + sum((leaf**2).sum() for leaf in tree_leaves(state))
    wanted = [inputs, *tree_leaves(start), *core.parameters()]
    gradients = torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True)
    assert all(gradient.abs().sum() > 0 for gradient in gradients[: 1 + len(tree_leaves(start))])
    return outputs, state, gradients


def check_cuts(core, tolerance):
    inputs = torch.randn(LANES, STEPS, WIDTH, dtype=torch.float64).to(next(core.parameters()))
    given = tree_map(torch.Tensor.detach, core(inputs + 1, core.initial_state(LANES))[1])
    before = tree_map(torch.clone, given)
    whole = run(core, inputs, given, ())
    for cuts in ((1,), (3, 4, 8)):
        assert_close(run(core, inputs, given, cuts), whole, rtol=tolerance, atol=tolerance)
    with torch.no_grad():
        core(inputs[:, :1], given)
    assert_close(given, before, rtol=0, atol=0)


@pytest.mark.usefixtures("_replaced")
@pytest.mark.parametrize("options", [{}, {"use_short_conv": True, "conv_size": 4}])
def test_state_and_gradients_pass_from_call_to_call(options):
    core = FlaCore("GatedLinearAttention", WIDTH, {"num_heads": HEADS, **options}).double()
    check_cuts(core, 1e-10)


@pytest.mark.usefixtures("_replaced")
def test_the_state_keeps_its_types():
    core = FlaCore("GatedLinearAttention", WIDTH, {"num_heads": HEADS, "use_short_conv": True}).bfloat16()
    state = core.initial_state(LANES)
    assert state["recurrent"].shape == (LANES, HEADS, WIDTH // HEADS, WIDTH // HEADS)
    assert [leaf.shape for leaf in state["inputs"]] == [(LANES, WIDTH, 4)] * 3
    assert [leaf.dtype for leaf in tree_leaves(state)] == [torch.float32] + [torch.bfloat16] * 3
    assert core(torch.randn(0, STEPS, WIDTH).bfloat16(), core.initial_state(0))[0].shape == (0, STEPS, WIDTH)
    assert type(core)(**core.init_args).init_args == core.init_args


@pytest.mark.usefixtures("_replaced")
def test_what_is_refused(monkeypatch):
    with pytest.raises(InputError, match="layer='Attention': must be one of GatedLinearAttention, HGRN2"):
        FlaCore("Attention")
    with pytest.raises(InputError, match="mode=fused_chunk has its state in another layout"):
        FlaCore("GatedLinearAttention", 8, {"mode": "fused_chunk"})
    with pytest.raises(InputError, match=r"with options=\{'num_heads': 3\}: key dim must be divisible"):
        FlaCore("GatedLinearAttention", 8, {"num_heads": 3})
    core = FlaCore("GatedLinearAttention", 8)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(InputError, match="FlaCore on the CPU: its kernels need a GPU"):
        core(torch.randn(LANES, STEPS, 8), core.initial_state(LANES))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fla.layers", None)
    with pytest.raises(InputError, match=r"needs flash-linear-attention and Triton; pip install lit_tbptt\[fla\]"):
        FlaCore("GatedLinearAttention")


LAYERS = {
    "GatedLinearAttention": {"num_heads": HEADS, "expand_k": 1.0},
    "HGRN2Attention": {"expand_ratio": 16},
    "GatedDeltaNet": {"num_heads": HEADS, "head_dim": 16, "expand_v": 1.0},
    "RWKV7Attention": {"head_dim": 16, "num_hidden_layers": 2},
}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_layers_of_the_package(layer):
    pytest.importorskip("fla.layers")
    core = FlaCore(layer, WIDTH, LAYERS[layer]).cuda()
    nn.init.normal_(core.layer.o_proj.weight, std=0.2)  # RWKV7's is zero
    inputs = torch.randn(LANES, STEPS, WIDTH, device="cuda")
    assert_close(core(inputs, core.initial_state(LANES))[0], core.layer(inputs)[0], rtol=1e-4, atol=1e-4)
    check_cuts(core, 2e-3)
