"""torch's attention is captured as views of one product, and computes what torch computes."""

import pytest
import torch
from inference.test_optimize import assert_close
from torch import nn

from sparse_ops.inference import optimize_for_inference

N, LENGTH, WIDTH, HEADS = 3, 6, 16, 4


class Attention(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.inner = nn.MultiheadAttention(WIDTH, HEADS, **options)

    def forward(self, x, memory=None, **options):
        memory = x if memory is None else memory
        found, weights = self.inner(x, memory, memory, **options)
        return (x + found) if weights is None else (x + found, weights)


def masks():
    later = torch.ones(LENGTH, LENGTH).triu(1).bool()
    padding = torch.zeros(N, LENGTH, dtype=torch.bool)
    padding[0, 4:] = padding[2, 1:3] = True
    return {
        "none": {},
        "bool": {"attn_mask": later},
        "float": {"attn_mask": torch.randn(LENGTH, LENGTH)},
        "a head": {"attn_mask": torch.randn(N * HEADS, LENGTH, LENGTH)},
        "padding": {"key_padding_mask": padding},
        "float padding": {"key_padding_mask": torch.randn(N, LENGTH)},
        "both": {"attn_mask": torch.randn(LENGTH, LENGTH), "key_padding_mask": padding},
        "both, bool": {"attn_mask": later, "key_padding_mask": padding},
        "causal": {"attn_mask": later, "is_causal": True},
        "causal, padding": {"attn_mask": later, "key_padding_mask": padding, "is_causal": True},
        "causal, padding, another": {
            "attn_mask": torch.randn(LENGTH, LENGTH),
            "key_padding_mask": padding,
            "is_causal": True,
        },
        "causal, another": {"attn_mask": torch.randn(LENGTH, LENGTH), "is_causal": True},
    }


def wanted(model, x, options):
    """By torch's code with gradients, which is not its fused kernel."""
    with torch.enable_grad():
        return model(x, **options)


def detached(result):
    return tuple(t.detach() for t in result) if isinstance(result, tuple) else result.detach()


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("name", list(masks()))
def test_masks(name, batch_first):
    torch.manual_seed(0)
    options = masks()[name] | {"need_weights": False}
    model = Attention(batch_first=batch_first, bias=name != "bool").eval()
    x = torch.randn(N, LENGTH, WIDTH) if batch_first else torch.randn(LENGTH, N, WIDTH)
    network = optimize_for_inference(model, {"x": x} | options)
    assert_close(network(x=x, **options), detached(wanted(model, x, options)), 1e-6)
    targets = [str(node.target) for node in network.graph.graph.nodes]
    assert not [t for t in targets if "clone" in t or ("aten.add" in t and name == "none")], targets
    assert len(network.layers()) == 2


@pytest.mark.parametrize(
    "made, called",
    [
        ({}, {"need_weights": True}),
        ({}, {"need_weights": True, "average_attn_weights": False}),
        ({}, {"memory": torch.randn(LENGTH + 2, N, WIDTH), "need_weights": False}),
        ({"kdim": 8, "vdim": 8}, {"memory": torch.randn(LENGTH, N, 8), "need_weights": False}),
        ({"add_bias_kv": True}, {"need_weights": False}),
        ({"add_zero_attn": True}, {"need_weights": False}),
    ],
)
def test_what_torch_code_is_left_to(made, called):
    torch.manual_seed(0)
    model, x = Attention(**made).eval(), torch.randn(LENGTH, N, WIDTH)
    network = optimize_for_inference(model, {"x": x} | called)
    assert_close(network(x=x, **called), detached(wanted(model, x, called)), 1e-6)


def test_one_sequence_without_a_batch():
    torch.manual_seed(0)
    model, x = Attention().eval(), torch.randn(LENGTH, WIDTH)
    network = optimize_for_inference(model, {"x": x, "need_weights": False})
    assert_close(network(x=x, need_weights=False), wanted(model, x, {"need_weights": False}).detach(), 1e-6)


class Own(nn.MultiheadAttention):
    """A forward of its own is what is captured."""

    def forward(self, *args, **options):
        found, weights = super().forward(*args, **options)
        return 2 * found, weights


def test_a_subclass_with_its_own_forward():
    torch.manual_seed(0)
    model, x = Attention().eval(), torch.randn(LENGTH, N, WIDTH)
    model.inner = Own(WIDTH, HEADS).eval()
    network = optimize_for_inference(model, {"x": x, "need_weights": False})
    assert_close(network(x=x, need_weights=False), wanted(model, x, {"need_weights": False}).detach(), 1e-6)


def test_the_model_is_as_before():
    model, detect = Attention().eval(), nn.modules.transformer._detect_is_causal_mask
    optimize_for_inference(model, {"x": torch.randn(LENGTH, N, WIDTH), "need_weights": False})
    with pytest.raises(ValueError, match="failed on the example"):
        optimize_for_inference(model, {"x": torch.randn(LENGTH, N, 3), "need_weights": False})
    assert "forward" not in model.inner.__dict__ and torch.backends.mha.get_fastpath_enabled()
    assert nn.modules.transformer._detect_is_causal_mask is detect


class Values(Attention):
    """Queries and keys are one tensor, values another."""

    def forward(self, x, other):
        return self.inner(x, x, other, need_weights=False)[0]


def test_values_of_their_own():
    torch.manual_seed(0)
    model, x, other = Values().eval(), torch.randn(LENGTH, N, WIDTH), torch.randn(LENGTH, N, WIDTH)
    network = optimize_for_inference(model, (x, other))
    with torch.enable_grad():
        assert_close(network(x, other), model(x, other).detach(), 1e-6)
