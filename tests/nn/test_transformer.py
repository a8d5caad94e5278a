"""torch's transformer layers with sparse linear layers inside: with and without padding, gradients and training."""

import pytest
import torch
from torch import nn

from sparse_ops import densify, sparsify
from sparse_ops.nn import SparseLinear, choice, timing

PADDING = torch.tensor([[False] * 5, [False, False, False, True, True]])


def pruned(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("linear1.weight", "linear2.weight")):
                parameter *= torch.rand_like(parameter) < 0.1
    return model


def layer(dropout=0.0, **options):
    return nn.TransformerEncoderLayer(16, 2, 32, dropout, batch_first=True, **options)


def stack():
    torch.manual_seed(0)
    return pruned(nn.TransformerEncoder(layer(), 2, norm=nn.LayerNorm(16)))


def bare():
    torch.manual_seed(0)
    return pruned(layer())


@pytest.mark.parametrize("grad", [torch.enable_grad, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("padding", [None, PADDING], ids=["full", "padded"])
@pytest.mark.parametrize("make", [bare, stack])
def test_sparse_is_dense_in_every_mode(make, padding, training, grad):
    """The dense result is taken with a gradient, where torch fuses nothing. Padded positions hold anything."""
    model, x = make().train(training), torch.randn(2, 5, 16)
    expected = model(x, src_key_padding_mask=padding).detach()
    sparse, calls = sparsify(model, policy="all", verbose=False), []
    for module in sparse.modules():
        if isinstance(module, SparseLinear):
            module.forward = lambda x, forward=module.forward: calls.append(1) or forward(x)
    with grad():
        y = sparse(x, src_key_padding_mask=padding)
    real = ~PADDING if padding is not None else ~torch.zeros_like(PADDING)
    torch.testing.assert_close(y[real], expected[real])
    assert len(calls) == (4 if make is stack else 2)


@pytest.mark.parametrize("first", [0, 1])
def test_one_sparse_layer_in_a_stack_is_enough(first):
    model, x = stack().eval(), torch.randn(2, 5, 16)
    with torch.no_grad():
        model.layers[first].linear1.weight.fill_(0.1)
        model.layers[first].linear2.weight.fill_(0.1)
    expected = model(x, src_key_padding_mask=PADDING).detach()
    sparse = sparsify(model, policy="all", verbose=False)
    assert isinstance(sparse.layers[1 - first].linear1, SparseLinear)
    assert isinstance(sparse.layers[first].linear1, nn.Linear)
    with torch.no_grad():
        y = sparse(x, src_key_padding_mask=PADDING)
    torch.testing.assert_close(y[~PADDING], expected[~PADDING])


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True:UserWarning")
@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])  # torch itself then refuses nested tensors
def test_densify_gives_the_encoder_its_own_choice_back(norm_first, enabled):
    model = pruned(nn.TransformerEncoder(layer(norm_first=norm_first), 2, enable_nested_tensor=enabled))
    given = model.use_nested_tensor
    assert given == (enabled and not norm_first)
    sparse = sparsify(sparsify(model, policy="all", verbose=False), policy="all", verbose=False)
    assert sparse.use_nested_tensor is False and model.use_nested_tensor == given
    dense = densify(sparse)
    assert dense.use_nested_tensor == given and dense.__dict__.keys() == model.__dict__.keys()


def test_an_example_with_padding_measures_a_stack():
    model = stack().eval()
    example = {"src": torch.randn(2, 5, 16), "src_key_padding_mask": PADDING}
    enabled = torch.backends.mha.get_fastpath_enabled()
    rows = sparsify(model, example, verbose=False).sparsify_table.layers
    assert [row.dense_ms is not None for row in rows] == [False, True, True] * 2
    assert torch.backends.mha.get_fastpath_enabled() == enabled


@pytest.mark.parametrize("fused_ms", [0.5, 2.0])
def test_an_encoder_whose_fused_kernel_is_faster_stays_dense(fused_ms, monkeypatch):
    def measure(dense, sparse, inputs):
        encoder = isinstance(dense, nn.TransformerEncoderLayer)
        if encoder:
            assert not dense.training and not sparse.training and isinstance(sparse.linear1, SparseLinear)
            assert sparse.activation_relu_or_gelu == 0 != dense.activation_relu_or_gelu
            assert [i.shape for i in inputs] == [(2, 5, 16)]
        return timing.Times((fused_ms if encoder else 2.0, 1.0), False, 1)

    monkeypatch.setattr(choice, "measure", measure)
    monkeypatch.setattr(timing, "compare", lambda runs, device: timing.Times((1.0, 2.0), False, 1))  # of the whole
    model, x = stack(), torch.randn(2, 5, 16)
    sparse = sparsify(model, x, verbose=False)
    of_encoders = [row for row in sparse.sparsify_table.layers if ".linear" in row.name]
    faster = fused_ms > 1
    assert [row.sparse for row in of_encoders] == [faster] * 4
    assert all("torch's fused encoder sparse is 0.50 times as fast" in row.reason for row in of_encoders) != faster
    assert sum(isinstance(m, SparseLinear) for m in sparse.modules()) == (4 if faster else 0)
    assert sparse.training and all(layer.activation_relu_or_gelu == int(not faster) for layer in sparse.layers)
    torch.testing.assert_close(sparse.eval()(x), model.eval()(x))
