"""Recipes: overrides, errors with the nearest key, round trip, and every recipe of the project."""

import inspect
import tomllib
from pathlib import Path

import pytest
import torch

from sparse_ops import methods
from sparse_ops.methods.schedules import growing
from sparse_ops.train import optimizers, recipe
from sparse_ops.train.recipe import parse, parse_override, read

RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.toml"))
SMALL = {"data": {"name": "digits"}, "network": {"name": "mlp"}, "method": {"name": "art", "sparsity": 0.9}}


def method(**changes):
    return {"method": SMALL["method"] | changes}


def write(tmp_path, text):
    path = tmp_path / "own.toml"
    path.write_text(text)
    return path


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_the_recipes_are_read_and_survive_a_round_trip(path, tmp_path):
    first = read(path)
    again = read(write(tmp_path, first.to_toml()))
    assert again == first and again.to_toml() == first.to_toml()
    sparsity = first.method["sparsity"]
    assert 0.5 < (max(sparsity.values()) if isinstance(sparsity, dict) else sparsity) < 1


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
@pytest.mark.parametrize("budget", [1, 3])
def test_the_methods_take_the_recipes_lengths(path, budget):
    """On a small network, too small for the sparsities, whose weights the patterns of `exclude` do not know."""
    found = read(path, {"budget": budget})
    info = methods.get(found.method["name"])
    arguments = {key: value for key, value in found.method.items() if key not in ("name", "exclude", "prunable")}
    arguments["sparsity"] = 0.5
    if info.total_steps:
        arguments["total_steps"] = 10_000_000
    model = torch.nn.Sequential(torch.nn.Linear(30, 20), torch.nn.Linear(20, 10))
    method = info.cls(model, optimizers.build(found.optimizer, model), **arguments)
    found.schedule.check_length(method.total_epochs)
    assert method.total_epochs >= 20
    if found.schedule.kind != "method":
        assert method.lr == "user" and (info.fixed_length or arguments.get("total_epochs"))


def test_there_are_recipes():
    assert {"demo", "art_cifar10_resnet32", "art_fashion_mnist_resnet32"} <= {p.stem for p in RECIPES}


def test_every_method_has_a_recipe_for_cifar10():
    found = {recipe.method["name"] for recipe in map(read, RECIPES) if recipe.data.name == "cifar10"}
    assert found == set(methods.names())


def test_extended_recipes_hold_images_out():
    """Whether a longer budget helps is asked of them, and may not be asked of test images."""
    found = [read(path) for path in RECIPES if path.stem.endswith("_extended")]
    assert len(found) >= 4 and all(recipe.data.validation >= 5000 for recipe in found)


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
        ({"data": {"name": "digits", "flip": 1}}, TypeError, "data.flip is 1, expected true or false"),
        ({"data": {"name": "digits", "crop": True}}, TypeError, "data.crop is True, expected an integer"),
        ({"data": {"name": "digit"}}, ValueError, "data.name is 'digit'; did you mean 'digits'?"),
        ({"data": {}}, ValueError, "data.name is missing"),
        ({"data": 3}, TypeError, "data is 3, expected a table"),
        ({"network": {"name": "vgg"}}, ValueError, "network.name is 'vgg'"),
        ({"method": {"sparsity": 0.9}}, ValueError, "method.name is missing"),
        ({"training": {"precision": "float16"}}, ValueError, "is 'float16'; did you mean 'bfloat16'?"),
        ({"optimizer": {"lr": "fast"}}, TypeError, "optimizer.lr is 'fast', expected a number"),
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
        ({"schedule": {"kind": "cosin"}}, ValueError, "schedule.kind is 'cosin'; did you mean 'cosine'?"),
        ({"schedule": {"warmup": 3}}, ValueError, "'schedule.warmup'; did you mean 'schedule.warmup_epochs'?"),
        ({"schedule": {"warmup_epochs": 3}}, ValueError, "is 3, which needs a schedule.kind other than 'method'"),
        ({"schedule": {"kind": "steps"}}, ValueError, "schedule.milestones is [] and schedule.kind 'steps'"),
        ({"schedule": {"kind": "cosine", "milestones": [3]}}, ValueError, "schedule.milestones is [3]"),
        ({"schedule": {"kind": "steps", "milestones": [0.5]}}, TypeError, "milestones is [0.5], expected integers"),
        ({"schedule": {"kind": "steps", "milestones": 3}}, TypeError, "schedule.milestones is 3, expected a list"),
        ({"schedule": {"kind": "linear", "final": 1.5}}, ValueError, "schedule.final is 1.5, expected a number from"),
        ({"loss": {"label_smoothing": 1}}, ValueError, "loss.label_smoothing is 1.0, expected a number from 0 to"),
        ({"loss": {"label_smooth": 0.1}}, ValueError, "did you mean 'loss.label_smoothing'?"),
        ({"optimizer": {"name": "adam"}}, ValueError, "optimizer.name is 'adam'; did you mean 'adamw'?"),
        ({"optimizer": {"beta1": 1.0}}, ValueError, "optimizer.beta1 is 1.0"),
        ({"optimizer": {"decay_norms": 0}}, TypeError, "optimizer.decay_norms is 0, expected true or false"),
        ({"budget": 0}, ValueError, "budget is 0.0, expected a number above 0"),
        ({"budget": "3x"}, TypeError, "budget is '3x', expected a number"),
        ({"budgets": 3}, ValueError, "unknown key 'budgets'; did you mean 'budget'?"),
        ({"training": {"select": "best"}}, ValueError, "training.select is 'best'"),
        ({"training": {"select": "validation"}}, ValueError, "'validation', which needs data.validation above 0"),
        ({"training": {"select": "test", "test_every": 2}}, ValueError, "but training.test_every is 2, not 1"),
        ({"training": {"test_every": 0}}, ValueError, "training.test_every is 0, expected 1 or more"),
        ({"network": {"name": "mlp", "stride": -1}}, ValueError, "network.stride is -1, expected 0 or more"),
        ({"network": {"name": "timm:"}}, ValueError, "network.name is 'timm:' (known: "),
        ({"network": {"name": "tim:vit"}}, ValueError, "network.name is 'tim:vit'"),
        ({"data": {"name": "digits", "images": -1}}, ValueError, "data.images is -1, expected 0 or more"),
        ({"seed": -1}, ValueError, "seed is -1, expected 0 or more"),
        ({"data": {"name": 3}}, TypeError, "data.name is 3, expected text in quotes"),
        (method(eta="fast"), TypeError, "method.eta is 'fast', expected a number"),
        (method(strict=1), TypeError, "method.strict is 1, expected true or false"),
        (method(half_window=0.5), TypeError, "method.half_window is 0.5, expected an integer"),
        (method(sparsity="high"), TypeError, "method.sparsity is 'high', expected a number"),
        (method(exclude=[3]), TypeError, "method.exclude is [3], expected a name pattern in quotes, or a list of such"),
        (method(name="artt"), ValueError, "there is no method 'artt'; did you mean 'art'?"),
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


def test_the_page_names_every_method():
    page = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| `[method]` |"))
    assert row.partition("(")[2].partition(")")[0].split(", ") == sorted(methods.names())


def test_another_method_s_keys_are_told_from_typing_errors(tmp_path):
    path = write(tmp_path, '[data]\nname = "digits"\n[network]\nname = "mlp"\n[method]\nname = "art"\nsparsity = 0.9\n')
    assert read(path, {"method.name": "rigl"}).method["name"] == "rigl"
    path.write_text(path.read_text() + "eta = 1.1\nfinetune_epochs = 3\nscope = 'erk'\n")
    told = (
        r"--set: method.name is 'rigl', but the other keys of \[method\] belong to art: rigl does not take eta, "
        r"finetune_epochs; begin with a recipe of rigl"
    )
    with pytest.raises(ValueError, match=told):
        read(path, {"method.name": "rigl"})
    with pytest.raises(ValueError, match=r"unknown key 'method\.etta'"):
        read(path, {"method.etta": 1.0})
    with pytest.raises(ValueError, match="there is no method 'rigll'"):
        read(path, {"method.name": "rigll"})


@pytest.mark.parametrize("name, cls", [("art", methods.ART), ("oneshot", methods.OneShot)])
def test_every_default_of_the_method_is_written_out(name, cls, monkeypatch):
    """An old run means the same when a default changes: its recipe.toml says what was in force."""
    text = parse(SMALL | method(name=name)).to_toml()
    parameters = inspect.signature(cls).parameters
    defaults = {k: p.default for k, p in parameters.items() if p.default not in (inspect.Parameter.empty, None)}
    written = tomllib.loads(text)["method"]
    assert written == {"name": name, "sparsity": 0.9} | defaults and len(defaults) >= 8
    assert "# prunable is not given\n# exclude is not given\n" in text
    changed = [p.replace(default=7) if k == "finetune_epochs" else p for k, p in parameters.items()]
    monkeypatch.setattr(cls, "__signature__", inspect.Signature(list(changed)), raising=False)
    assert parse(SMALL | method(name=name)).method["finetune_epochs"] == 7
    assert parse(tomllib.loads(text)).method["finetune_epochs"] == 160
    assert parse(tomllib.loads(text)).to_toml() == text


LENGTHS = {"pretrain_epochs": 3, "max_regularize_epochs": 5, "finetune_epochs": 0, "total_epochs": 11}


def test_a_budget_scales_every_length_once():
    schedule = {"kind": "steps", "warmup_epochs": 1, "milestones": [3, 6]}
    table = SMALL | method(**LENGTHS, half_window=2) | {"schedule": schedule, "budget": 2.5}
    found = parse(table)
    longer = {"pretrain_epochs": 8, "max_regularize_epochs": 13, "finetune_epochs": 0, "total_epochs": 28}
    assert {key: found.method[key] for key in LENGTHS} == longer and found.method["half_window"] == 2
    assert (found.schedule.warmup_epochs, found.schedule.milestones) == (3, [8, 15])
    assert (found.budget, found.budgeted) == (1.0, 2.5)
    again = parse(tomllib.loads(found.to_toml()))
    assert again == found and again.to_toml() == found.to_toml()  # a run's own recipe is not scaled again
    twice = parse(tomllib.loads(found.to_toml()) | {"budget": 2})
    assert twice.budgeted == 5.0 and twice.method["pretrain_epochs"] == 16
    short = parse(SMALL | method(**LENGTHS) | {"budget": 0.1})
    assert [short.method[key] for key in LENGTHS] == [1, 1, 0, 1]  # what was there stays there
    steps = parse(SMALL | {"method": {"name": "greg1", "sparsity": 0.9, "pretrain_epochs": 200}, "budget": 3}).method
    assert [steps[key] for key in ("pretrain_epochs", "update_every", "stabilize_steps")] == [600, 30, 30_000]
    for budget, delta_t in ((0.3, 30), (0.001, 2), (4, 100)):
        rigl = parse(SMALL | {"method": {"name": "rigl", "sparsity": 0.9}, "budget": budget}).method
        assert rigl["delta_t"] == delta_t and rigl["total_epochs"] == max(1, 100 * budget)
    never = parse(SMALL | {"method": {"name": "set", "sparsity": 0.9, "delta_t": 1}, "budget": 0.5}).method
    assert never["delta_t"] == 1  # the method says what is wrong with it
    rivals = parse(SMALL | {"compare": {"oneshot": {"finetune_epochs": 4}}, "budget": 2})
    assert rivals.compare == {"oneshot": {"finetune_epochs": 8}}
    defaults = parse(SMALL).method
    assert parse(SMALL | {"budget": 3}).method["finetune_epochs"] == 3 * defaults["finetune_epochs"]


@pytest.mark.parametrize("budget", [0.5, 3])
def test_a_budget_keeps_the_curve_of_art_s_penalty(budget):
    """At the same share of its phase lambda is what it would be without the budget."""

    def strengths(**more):
        found = parse(SMALL | method(**LENGTHS | {"max_regularize_epochs": 6, "total_epochs": 0}, eta=1.3) | more)
        epochs = found.method["max_regularize_epochs"]
        return [growing(found.method["lambda_init"], found.method["eta"], e) for e in range(epochs)]

    plain, scaled = strengths(), strengths(budget=budget)
    assert len(scaled) == budget * len(plain)
    step = max(1, int(budget)), max(1, int(1 / budget))
    assert scaled[:: step[0]] == pytest.approx(plain[:: step[1]], rel=1e-12)
    found = parse(SMALL | {"compare": {"art": {"eta": 8}, "oneshot": {}}, "budget": budget})
    assert found.compare == {"art": {"eta": pytest.approx(8 ** (1 / budget))}, "oneshot": {}}
    assert found.method["eta"] == 1.05 ** (1 / budget)  # a default too
    assert parse(tomllib.loads(found.to_toml())) == found  # once
    assert parse(SMALL | method(eta=-1.0) | {"budget": budget}).method["eta"] == -1.0  # for ART to refuse


def test_a_schedule_takes_the_learning_rate_from_the_method():
    assert parse(SMALL).method["lr"] == "method"
    found = parse(SMALL | {"schedule": {"kind": "cosine"}})
    assert found.method["lr"] == "user" and parse(tomllib.loads(found.to_toml())) == found


GREG = {"name": "greg1", "sparsity": 0.9, "pretrain_epochs": 1}


@pytest.mark.parametrize("key", ["regularize_lr", "finetune_lr"])
def test_learning_rates_of_phases_that_nothing_would_apply_are_errors(key):
    cosine = {"schedule": {"kind": "cosine"}}
    why = "but schedule.kind is 'cosine', which sets the learning rate of the whole run"
    with pytest.raises(ValueError, match=rf"^method.{key} is 0.002, {why}; leave {key} out$"):
        parse(SMALL | cosine | {"method": GREG | {key: 0.002}})
    with pytest.raises(ValueError, match=rf"^compare.greg2.{key} is 0.002, {why}"):
        parse(SMALL | cosine | {"compare": {"greg2": {key: 0.002}}})
    with pytest.raises(ValueError, match=rf"^method.{key} is 0.002, but method.lr is 'user', which leaves"):
        parse(SMALL | {"method": GREG | {key: 0.002, "lr": "user"}})
    assert parse(SMALL | {"method": GREG | {key: 0.002}}).method[key] == 0.002
    assert parse(SMALL | {"compare": {"greg2": {key: 0.002}}}).compare["greg2"][key] == 0.002
    found = parse(SMALL | cosine | {"method": GREG})
    assert key not in found.method and f"# {key} is not given" in found.to_toml()
    assert parse(tomllib.loads(found.to_toml())) == found


def test_adamw_has_its_own_defaults():
    found = parse(SMALL | {"optimizer": {"name": "adamw", "beta2": 0.98}}).optimizer
    assert (found.lr, found.weight_decay, found.beta1, found.beta2) == (1e-3, 1e-2, 0.9, 0.98)
    given = parse(SMALL | {"optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0}}).optimizer
    assert (given.lr, given.weight_decay) == (0.01, 0.0)


def test_method_may_hold_tables():
    table = SMALL | {"method": {"name": "art", "sparsity": {"stem.weight": 0.5, "b": 1}, "exclude": ["a", "b"]}}
    assert parse(tomllib.loads(parse(table).to_toml())) == parse(table)
    assert recipe.parse(table).method["sparsity"]["stem.weight"] == 0.5
