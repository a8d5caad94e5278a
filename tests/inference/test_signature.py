"""A network for inference gives what the model gives for every call that it accepts, and refuses the others clearly."""

import copy
import pickle

import pytest
import torch
from inference.test_optimize import assert_close
from torch import nn

import sparse_ops
from sparse_ops.inference import load_exported, optimize_for_inference


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(8, 6)

    def forward(self, x, scale=1.0, flag=False, b=None):
        y = self.layer(x) * scale
        y = -y if flag else y
        return y if b is None else y + b


class ByBatch(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.kind, self.layer = kind, nn.Linear(8, 8)
        self.register_buffer("table", torch.randn(8, 8))

    def forward(self, x):
        y = self.layer(x)
        return {
            "at least 8": lambda: y if x.shape[0] >= 8 else -y,
            "even": lambda: y if x.shape[0] % 2 == 0 else -y,
            "split": lambda: torch.stack(y.split(4)),
            "loop": lambda: torch.stack([self.layer(x[i]) for i in range(x.shape[0])]),
            "table": lambda: y + self.table,
            "one": lambda: y if x.shape[0] != 1 else -y,
            "squeeze": lambda: y.squeeze(),
            "free": lambda: y / x.shape[0],
        }[self.kind]()


@pytest.mark.parametrize("kind", ["at least 8", "even", "split", "loop", "table", "one", "squeeze", "free"])
def test_never_a_wrong_result_for_another_batch(kind, forms):
    forms("dense")
    model = ByBatch(kind).eval()
    network = optimize_for_inference(model, torch.randn(8, 8))
    accepted = []
    for n in (1, 2, 3, 4, 8, 9, 16):
        x = torch.randn(n, 8)
        try:
            found = network(x)
        except ValueError as error:
            assert "argument x is" in str(error)
            continue
        accepted.append(n)
        assert_close(found, model(x).detach(), 1e-5)
    sizes = [1, 2, 3, 4, 8, 9, 16]
    assert accepted == {"free": sizes, "squeeze": sizes, "one": sizes[1:]}.get(kind, [8])


def test_other_values_are_refused_and_defaults_are_known(forms, tmp_path):
    forms("dense")
    model, x = Scaled().eval(), torch.randn(4, 8)
    network = optimize_for_inference(model, (x, 3.0))
    sparse_ops.export(network, (x, 3.0), tmp_path / "n.pt2")
    for n in (network, load_exported(tmp_path / "n.pt2")):
        for y in (n(x, 3.0), n(x, scale=3.0), n(scale=3.0, x=x), n(x, 3.0, False)):
            assert_close(y, model(x, 3.0).detach(), 1e-5)
        with pytest.raises(ValueError, match=r"argument scale is 2.0, this network was made with 3.0"):
            n(x, 2.0)
        with pytest.raises(ValueError, match=r"argument flag is True, this network was made with False"):
            n(x, 3.0, flag=True)
        with pytest.raises(ValueError, match=r"argument scale is 1.0, this network was made with 3.0"):
            n(x)
        with pytest.raises(TypeError, match=r"argument x is given twice"):
            n(x, 3.0, x=x)
        with pytest.raises(TypeError, match=r"argument x is missing"):
            n(scale=3.0)
        with pytest.raises(ValueError, match=r"argument b is a float32 tensor of shape \(4, 6\), .* with None"):
            n(x, 3.0, b=torch.zeros(4, 6))


def test_keyword_arguments_in_any_order(forms):
    forms("dense")
    model, x, b = Scaled().eval(), torch.randn(4, 8), torch.randn(4, 6)
    for example in ({"x": x, "b": b}, {"b": b, "x": x}):
        network = optimize_for_inference(model, example)
        wanted = model(x, b=b).detach()
        for found in (network(b=b, x=x), network(x=x, b=b), network(x, b=b), network(x, 1.0, False, b)):
            assert_close(found, wanted, 1e-5)
        with pytest.raises(ValueError, match=r"argument b is \(4, 5\)"):
            network(x, b=torch.randn(4, 5))
        with pytest.raises(ValueError, match="differ in their first dimension: x 4, b 3"):
            network(x, b=torch.randn(3, 6))


def test_inputs_of_other_kinds(forms):
    forms("sparse")
    model, x = Scaled().eval(), torch.randn(4, 8)
    network = optimize_for_inference(model, x)
    wanted = model(x).detach()
    assert_close(network(x.double()), wanted, 1e-5)
    assert_close(network(x.bfloat16()), wanted, 0.02)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(network(x), network(x.clone()))
        assert_close(network(x), wanted, 1e-5)
        assert_close(optimize_for_inference(model, x)(x), wanted, 1e-5)
    for value in (x.long(), None, x.tolist(), x.numpy()):
        with pytest.raises(TypeError, match=r"argument x is .* float32 tensor of shape \(4, 8\)") as caught:
            network(value)
        assert len(str(caught.value)) < 160


class Counts(nn.Module):
    def __init__(self, inplace):
        super().__init__()
        self.inplace, self.layer = inplace, nn.Linear(8, 6)
        self.register_buffer("n", torch.zeros(3))

    def forward(self, x):
        if self.inplace:
            self.n.add_(1)
        else:
            self.n = self.n + 1
        return self.layer(x)


class Random(nn.Module):
    def forward(self, x):
        return nn.functional.dropout(x, 0.5, True)


def test_models_that_cannot_be_one_graph():
    x = torch.randn(4, 8)
    for inplace in (True, False):
        model = Counts(inplace)
        own = model.n
        with pytest.raises(ValueError, match="changes its buffer 'n' in forward"):
            optimize_for_inference(model, x)
        assert model.n is own and torch.equal(own, torch.zeros(3))
    with pytest.raises(ValueError, match="different results for the same input"):
        optimize_for_inference(Random(), x)
    with pytest.raises(ValueError, match=r"is empty, of shape \(0, 8\)"):
        optimize_for_inference(nn.Linear(8, 6), torch.zeros(0, 8))


def test_no_file_that_cannot_be_read(tmp_path, forms):
    forms("sparse")
    model, x = nn.Sequential(nn.Linear(8, 6), nn.ReLU()), torch.randn(4, 8)
    network = optimize_for_inference(model, x)
    with pytest.raises(TypeError, match=r"sparse_ops\.export"):
        pickle.dumps(network)
    with pytest.raises(TypeError, match=r"sparse_ops\.export"):
        torch.save(network, tmp_path / "n.pt")
    with pytest.raises(TypeError, match=r"sparse_ops\.export"):
        sparse_ops.save(network, tmp_path / "n.safetensors")
    with pytest.raises(Exception, match=r"sparse_ops\.export"):
        torch.export.export(network, (x,))
    with pytest.raises(ValueError, match="what it returned already"):
        optimize_for_inference(network, x)
    assert torch.equal(copy.deepcopy(network)(x), network(x))
    assert not (tmp_path / "n.safetensors").exists()


def test_another_dtype_is_refused_and_everything_else_goes(forms):
    forms("sparse")
    model = nn.Sequential(nn.Conv1d(4, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 18, 5), nn.LayerNorm(5)).eval()
    x = torch.randn(2, 4, 20)
    network = optimize_for_inference(model, x)
    wanted = network(x)
    for change in (
        nn.Module.double,
        nn.Module.half,
        lambda n: n.to(torch.bfloat16),
        lambda n: nn.Sequential(n).double(),
    ):
        with pytest.raises(
            ValueError, match=r"computes in float32 and cannot be converted to torch.*optimize_for_infer"
        ):
            change(network)
    for change in (nn.Module.float, nn.Module.cpu, nn.Module.share_memory, lambda n: n.to("cpu", torch.float32)):
        assert torch.equal(change(network)(x), wanted)
    half = optimize_for_inference(copy.deepcopy(model), x, dtype="bfloat16")
    wanted = half(x)
    assert torch.equal(half.bfloat16()(x), wanted)  # its norms stay float32
    with pytest.raises(ValueError, match=r"computes in bfloat16 and cannot be converted to torch.float32"):
        half.float()


def test_an_empty_batch_says_what_to_do(forms):
    forms("sparse")
    network = optimize_for_inference(nn.Sequential(nn.Linear(8, 6)).eval(), torch.randn(4, 8))
    with pytest.raises(ValueError, match=r"input is \(0, 8\), .* first dimension of 1 or more; leave out the call"):
        network(torch.randn(0, 8))


class Recurrent(nn.Module):
    def __init__(self, kind, state=False):
        super().__init__()
        self.rnn, self.fc, self.state = kind(8, 16, 2, batch_first=True), nn.Linear(16, 4), state

    def forward(self, x, h=None):
        return self.fc(self.rnn(x, h)[0] if self.state else self.rnn(x)[0])


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_in_bfloat16(kind, forms):
    forms("dense")
    torch.manual_seed(0)
    model, x = Recurrent(kind).eval(), torch.randn(4, 6, 8)
    network = optimize_for_inference(model, x, dtype="bfloat16")
    assert_close(network(x), model(x).detach(), 0.05)
    assert_close(network(x[:3]), model(x[:3]).detach(), 0.05)
    if kind is not nn.LSTM:
        given = Recurrent(kind, True).eval()
        h = torch.randn(2, 4, 16)
        network = optimize_for_inference(given, (x, h), dtype="bfloat16")
        assert_close(network(x, h), given(x, h).detach(), 0.05)


def test_stays_in_evaluation_mode_inside_another_module(forms):
    forms("dense")
    network = optimize_for_inference(nn.Linear(8, 6), torch.randn(4, 8))
    whole = nn.Sequential(network, nn.Linear(6, 2)).train()
    assert whole.training and not network.training
    with pytest.raises(ValueError, match="train the model itself"):
        network.train()


@pytest.mark.parametrize("own", [torch.float64, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("dtype", [torch.float32, "bfloat16", torch.bfloat16])
def test_computes_in_the_dtype_that_was_asked_for(own, dtype, forms):
    forms("sparse")
    model = nn.Sequential(nn.Linear(8, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, 3)).to(own).eval()
    x = torch.randn(4, 8, dtype=own)
    network = optimize_for_inference(model, x, dtype=dtype)
    assert all(layer.dense_weight().dtype == getattr(torch, str(dtype).split(".")[-1]) for _, layer in network.layers())
    assert network(x).dtype == own
    exact = own != torch.bfloat16 and dtype == torch.float32
    assert_close(network(x), model(x).detach(), 1e-5 if exact else 0.05)


def test_images_lie_as_the_models_and_one_without_a_batch(forms):
    forms("batch_last")
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).eval()
    x = torch.randn(4, 3, 9, 9)
    found = optimize_for_inference(model, x)(x)
    assert found.is_contiguous()
    assert_close(found.view(4, -1), model(x).detach().view(4, -1), 1e-5)
    assert_close(optimize_for_inference(copy.deepcopy(model), x[0])(x[0]), model(x[0]).detach(), 1e-5)


def test_the_dense_form_says_why():
    model, x = nn.Sequential(nn.Linear(64, 64)), torch.randn(4, 64)
    with torch.no_grad():
        model[0].weight *= torch.rand(64, 64) > 0.9
    text = str(optimize_for_inference(model, x).report())
    assert "runs as dense" in text and "sparse 1.000" in text


def test_a_model_masked_by_torch_becomes_sparse_under_its_names(forms):
    forms("sparse")
    model, x = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 4)).eval(), torch.randn(4, 32)
    for layer in (model[0], model[2]):
        nn.utils.prune.l1_unstructured(layer, "weight", 0.9)
    network = optimize_for_inference(model, x)
    assert [(name, layer.sparse_form) for name, layer in network.layers()] == [("0", True), ("2", True)]
    assert_close(network(x), model(x).detach(), 1e-5)


def test_tensors_that_are_not_strided_are_refused_by_name():
    network = optimize_for_inference(nn.Sequential(nn.Linear(4, 3)), torch.randn(2, 4))
    for made, name in ((torch.Tensor.to_sparse, "sparse_coo"), (torch.Tensor.to_mkldnn, "mkldnn")):
        with pytest.raises(TypeError, match=f"argument input is a tensor of layout {name}"):
            network(made(torch.randn(2, 4)))
