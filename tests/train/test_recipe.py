"""Recipes: overrides, errors with the nearest key, round trip, and every recipe of the project."""

from pathlib import Path

import pytest

from sparse_ops.train import recipe
from sparse_ops.train.recipe import parse, parse_override, read

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
SMALL = {"data": {"name": "digits"}, "network": {"name": "mlp"}, "method": {"name": "art", "sparsity": 0.9}}


def write(tmp_path, text):
    path = tmp_path / "own.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_the_recipes_are_read_and_survive_a_round_trip(path, tmp_path):
    first = read(path)
    again = read(write(tmp_path, first.to_toml()))
    assert again == first and again.to_toml() == first.to_toml()
    assert first.method["sparsity"] == 0.98


def test_there_are_recipes():
    assert {"demo", "art_cifar10_resnet32", "art_fashion_mnist_resnet32"} <= {p.stem for p in RECIPES}


def test_overrides_win():
    path = RECIPES[0]
    found = read(path, dict(map(parse_override, ["method.sparsity=0.5", "optimizer.lr=1", "data.name = digits"])))
    assert (found.method["sparsity"], found.optimizer.lr, found.data.name) == (0.5, 1.0, "digits")
    assert isinstance(found.optimizer.lr, float)


@pytest.mark.parametrize(
    "change, error, message",
    [
        ({"optimiser": {}}, ValueError, "unknown key 'optimiser'; did you mean 'optimizer'?"),
        ({"data": {"name": "digits", "batchsize": 3}}, ValueError, "'data.batchsize'; did you mean 'data.batch_size'?"),
        ({"data": {"name": "digits", "batch_size": 0}}, ValueError, "data.batch_size is 0, expected 1 or more"),
        ({"data": {"name": "digits", "flip": 1}}, TypeError, "data.flip is 1, expected bool"),
        ({"data": {"name": "digits", "crop": True}}, TypeError, "data.crop is True, expected int"),
        ({"data": {"name": "digit"}}, ValueError, "data.name is 'digit'; did you mean 'digits'?"),
        ({"data": {}}, ValueError, "data.name is missing"),
        ({"data": 3}, TypeError, "data is 3, expected a table"),
        ({"network": {"name": "vgg"}}, ValueError, "network.name is 'vgg'"),
        ({"method": {"sparsity": 0.9}}, ValueError, "method.name is missing"),
        ({"training": {"precision": "float16"}}, ValueError, "is 'float16'; did you mean 'bfloat16'?"),
        ({"optimizer": {"lr": "fast"}}, TypeError, "optimizer.lr is 'fast', expected float"),
        (
            {"optimizer": {"weight_decay": float("inf")}},
            ValueError,
            "optimizer.weight_decay is inf, expected 0 or more",
        ),
        (
            {"optimizer": {"momentum": 0, "nesterov": True}},
            ValueError,
            "nesterov is true, which needs optimizer.momentum",
        ),
        ({"seed": -1}, ValueError, "seed is -1, expected 0 or more"),
    ],
)
def test_errors_name_key_and_value(change, error, message):
    with pytest.raises(error) as caught:
        parse(SMALL | change)
    assert message in str(caught.value)


def test_errors_of_files_name_the_file(tmp_path):
    with pytest.raises(ValueError, match=r"own.toml is not TOML: "):
        read(write(tmp_path, "seed = = 1"))
    with pytest.raises(ValueError, match=r"none.toml cannot be read: No such file"):
        read(tmp_path / "none.toml")
    with pytest.raises(ValueError, match=r"own.toml: data is missing"):
        read(write(tmp_path, "seed = 1"))
    wrong = write(tmp_path, '[data]\nname = "digit"\n[network]\nname = "mlp"\n[method]\nname = "art"\n')
    with pytest.raises(ValueError, match=r"own.toml: data.name is 'digit'"):
        read(wrong, {"network.name": "resnet8"})
    with pytest.raises(ValueError, match=r"own.toml: method is missing"):
        read(write(tmp_path, '[data]\nname = "digits"\n'), {"network.name": "mlp"})
    with pytest.raises(ValueError, match=r"^--set: network.name is 'resnet9'; did you mean 'resnet8'"):
        read(RECIPES[0], {"network.name": "resnet9"})
    with pytest.raises(ValueError, match="expected KEY=VALUE"):
        parse_override("seed")
    with pytest.raises(ValueError, match="seed is a value, not a table"):
        read(RECIPES[0], {"seed.x": 1})


def test_method_may_hold_tables():
    table = SMALL | {"method": {"name": "art", "sparsity": {"stem.weight": 0.5, "b": 1}, "exclude": ["a", "b"]}}
    import tomllib

    assert parse(tomllib.loads(parse(table).to_toml())) == parse(table)
    assert recipe.parse(table).method["sparsity"]["stem.weight"] == 0.5
