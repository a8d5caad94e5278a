"""Timings are short here: the times themselves are not tested."""

import pytest

from sparse_ops.train import deploy


@pytest.fixture(scope="module", autouse=True)
def short_timings():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deploy, "ROUNDS", 3)
        patch.setattr(deploy, "SAMPLE_SECONDS", 1e-4)
        patch.setattr(deploy, "THREADS", 1)
        yield
