"""Models are captured once, and measuring is one call of each form: the tests say which forms are taken."""

import math

import pytest

from sparse_ops.inference import capture, optimize, plan
from sparse_ops.nn import timing

_captured: dict = {}
_capture = capture.capture


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Everything is called once and takes one millisecond; a model object is captured once."""

    def compare(runs, device):
        for run in runs:
            run()
        return timing.Times((1.0,) * len(runs), False, 1)

    def once(model, args, kwargs):
        if id(model) not in _captured:
            _captured[id(model)] = model, _capture(model, args, kwargs)
        return optimize._copy(_captured[id(model)][1])

    monkeypatch.setattr(timing, "compare", compare)
    monkeypatch.setattr(capture, "capture", once)


@pytest.fixture
def forms(monkeypatch):
    """Make layers look quickest in one form, "dense", "sparse" or "batch_last", wherever they have it."""

    def prefer(form):
        measured = plan._costs
        rank = {"dense": 2.0, "sparse": 3.0, "batch_last": 4.0} | {form: 0.0}

        def costs(*arguments):
            found = measured(*arguments)
            ms = {name: math.inf if math.isinf(getattr(found, name)) else rank[name] for name in rank}
            return plan.Costs(**ms, sparsity=found.sparsity, busy=False)

        monkeypatch.setattr(plan, "_costs", costs)
        monkeypatch.setattr(plan, "_conversion", lambda found: 0.01)
        monkeypatch.setattr(optimize, "_times", lambda networks, *_: {n: -i for i, n in enumerate(networks)})

    return prefer
