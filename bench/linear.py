"""SparseLinear's three products against dense ones: output, input gradient, weight gradient.

python -m bench linear --sparsity 0.9 0.98 --size 1024x1024 --batch 1024 64 1 --json bench/results/linear.jsonl
"""

import torch
from torch.nn.functional import linear

from bench.common import DTYPES, measure, parser, report, start
from sparse_ops.formats import Pattern, transposed
from sparse_ops.ops.csr_sddmm import csr_sddmm
from sparse_ops.ops.csr_spmm import csr_spmm


def shape(text: str) -> tuple[int, int]:
    """1024x4096: out_features and in_features."""
    rows, columns = text.split("x")
    return int(rows), int(columns)


def problems(M, K, N, sparsity, args):
    """(op, contenders) of each product for a random mask; the dense layer gets its weight in the better layout."""
    dtype = DTYPES[args.dtype]
    weight = torch.randn(M, K, device=args.device) * (torch.rand(M, K, device=args.device) >= sparsity)
    weight = weight.to(dtype)
    pattern, values = Pattern.from_dense(weight)
    tensors = pattern.tensors()
    x, dy, bias = (torch.randn(*s, device=args.device).to(dtype) for s in ((N, K), (N, M), (M,)))
    stored_transposed = weight.T.contiguous().T
    csr = weight.to_sparse_csr()
    t_values, t_tensors = values[tensors[4]], transposed(*tensors)
    yield (
        "csr_spmm",
        {
            "dense": lambda: linear(x, weight, bias),
            "dense, weight transposed": lambda: linear(x, stored_transposed, bias),
            "torch.sparse CSR": lambda: torch.addmm(bias[:, None], csr, x.T),
            "sparse_ops": lambda: csr_spmm(values, *tensors, x, True, bias),
        },
    )
    yield (
        "csr_spmm input grad",
        {"dense": lambda: dy @ weight, "sparse_ops": lambda: csr_spmm(t_values, *t_tensors, dy, True)},
    )
    yield (
        "csr_sddmm",
        {"dense": lambda: dy.T @ x, "sparse_ops": lambda: csr_sddmm(dy, x, *tensors, True)},
    )


def main(argv=None):
    options = parser(__doc__)
    options.add_argument("--sparsity", type=float, nargs="+", default=[0.9, 0.95, 0.98, 0.99])
    options.add_argument("--size", type=shape, nargs="+", default=[(1024, 1024)], metavar="OUTxIN")
    options.add_argument("--batch", type=int, nargs="+", default=[1024, 64, 1])
    options.add_argument("--dtype", choices=DTYPES, default="float32")
    args = start(options, argv)
    for M, K in args.size:
        for N in args.batch:
            for sparsity in args.sparsity:
                for op, contenders in problems(M, K, N, sparsity, args):
                    nnz = round(M * K * (1 - sparsity))
                    with torch.inference_mode():
                        results = measure(contenders, args)
                    for name, times in results.items():
                        flops = 2 * N * (nnz if "sparse" in name else M * K)
                        report(
                            args,
                            op=op,
                            shape=(M, K, N),
                            dtype=args.dtype,
                            sparsity=sparsity,
                            contender=name,
                            **times,
                            flops=flops,
                        )


if __name__ == "__main__":
    main()
