"""Exact selection among weights, from cold: the k-th smallest magnitude, and the packed mask of a budget."""

import numpy as np
import torch

from bench import common
from sparse_ops.ops.kth_magnitude import kth_magnitude
from sparse_ops.ops.magnitude_mask import magnitude_mask

# the parameters of a ResNet-50 are 25.6 million
KINDS = {
    "normal": lambda n: torch.randn(n),
    "sparse": lambda n: torch.randn(n) * (torch.rand(n) > 0.98),
}


def contenders(w: torch.Tensor, zeros: int, device: str) -> dict[str, dict]:
    """By op; each starts from the weights, so that taking |w| belongs to it where it needs the copy."""
    n = w.numel()
    kth = {
        "sparse_ops": lambda: kth_magnitude([w], zeros),
        "torch.topk": lambda: w.abs().topk(n - zeros + 1, sorted=False).values.min(),
        "torch.kthvalue": lambda: w.abs().kthvalue(zeros).values,
    }
    mask = {
        "sparse_ops": lambda: magnitude_mask([w], zeros),
        "torch.topk > threshold": lambda: w.abs() > w.abs().topk(n - zeros + 1, sorted=False).values.min(),
    }
    if device == "cpu":
        kth["numpy.partition"] = lambda: np.partition(w.abs().numpy(), zeros - 1)[zeros - 1]
        values = w.numpy()
        mask["numpy.partition >"] = lambda: np.abs(values) > np.partition(np.abs(values), zeros - 1)[zeros - 1]
    return {"kth_magnitude": kth, "magnitude_mask": mask}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--size", type=int, default=25_600_000, help="number of weights")
    parser.add_argument("--sparsity", type=float, default=0.98)
    parser.add_argument("--dtype", default="float32", choices=list(common.DTYPES))
    parser.add_argument("--kind", default="normal", choices=list(KINDS), help="sparse: 98 %% of the weights are 0")
    args = common.start(parser)
    w = KINDS[args.kind](args.size).to(args.device, common.DTYPES[args.dtype])
    zeros = round(args.sparsity * args.size)
    if args.dtype == "bfloat16" and args.device == "cpu":
        raise SystemExit("select: numpy has no bfloat16; choose another dtype")
    for op, runs in contenders(w, zeros, args.device).items():
        values = {name: run() for name, run in runs.items()}
        if op == "kth_magnitude" and len({float(v) for v in values.values()}) != 1:
            raise SystemExit(f"select: the contenders disagree: {values}")
        for name, times in common.measure(runs, args).items():
            common.report(
                args,
                op=op,
                shape=f"{args.size} {args.kind}",
                dtype=args.dtype,
                sparsity=args.sparsity,
                contender=name,
                bytes=w.numel() * w.element_size(),
                **times,
            )


if __name__ == "__main__":
    main()
