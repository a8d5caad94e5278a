"""Every Triton kernel, compiled ahead of time: registers, spills, shared memory and the width of its memory accesses.

    python -m bench kernels --targets sm_90 gfx942 --json out/kernels.jsonl

No GPU is needed: Triton's wheel carries the assemblers.
"""

import argparse
import concurrent.futures
import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TARGETS = {
    "sm_80": ("cuda", 80, 32),
    "sm_90": ("cuda", 90, 32),
    "sm_100": ("cuda", 100, 32),
    "gfx942": ("hip", "gfx942", 64),
}
POINTERS = {
    "*i64": "rows histograms ranks sizes ties",
    "*i32": "chunks chunk_scopes nan row_offsets columns t_row_offsets t_columns t_permutation",
    "*fp64": "coefficients brackets statistics partials report work scale pull levels sums thresholds",
    "*u8": "mask",
}
TYPES = {f"{name}_ptr": kind for kind, names in POINTERS.items() for name in names.split()}
F32, F16, BF16, F64 = "float32", "float16", "bfloat16", "float64"

SGD = {
    "lr_ptr": None,
    "grad_scale_ptr": None,
    "found_inf_ptr": None,
    "W": F32,
    "G": F32,
    "M": F32,
    "COMPUTE": F32,
    "PENALTY": "hypersparse",
    "MASKED": True,
    "MOMENTUM": True,
    "FIRST": False,
    "NESTEROV": False,
    "MAXIMIZE": False,
    "STATISTICS": True,
    "ALIGNED": True,
    "CHUNK": 16384,
    "EIGHTS": 64,
}
ADAMW = {k: v for k, v in SGD.items() if k not in ("MOMENTUM", "FIRST", "NESTEROV")} | {
    "V": F32,
    "L": F32,
    "AMSGRAD": False,
}
AMSGRAD = ADAMW | {"AMSGRAD": True, "MASKED": False, "lr_ptr": "*fp32"}
OBSERVE = {"W": F32, "COMPUTE": F32, "MASKED": True, "ALIGNED": True, "CHUNK": 16384, "EIGHTS": 64}
RADIX = {"KEY": F32, "ROUNDS": 3, "BITS": 31}
SELECT = {"KEY": F32, "ALL_ROUNDS": 3, "BITS": 31}
DIGIT = SELECT | {"W": F32, "ROUND": 2, "CHUNK": 16384, "BLOCK": 2048}
SPMM = (
    dict.fromkeys(["bias_ptr", "addend_ptr"])
    | {"ACTIVATION": "none", "COMPUTE": F32, "Y": F32, "BLOCK_M": 16}
    | {"BLOCK_N": 128, "stride_bn": 1, "stride_yn": 1}
)
SDDMM = {"COMPUTE": F32, "DVALUES": F32, "BLOCK_I": 16, "BLOCK_N": 128, "stride_dn": 1, "stride_bn": 1}
GROUPS = {"ELU": True, "COMPUTE": F32, "CHUNK": 16384, "BLOCK": 1024}
WINDOW = {"KH": 3, "KW": 3, "SH": 1, "SW": 1, "PH": 1, "PW": 1, "DH": 1, "DW": 1, "BLOCK": 1024, "COMPUTE": F32}
WINDOW_BF16 = (
    WINDOW | {"Y": BF16, "stride_xc": 1} | dict.fromkeys(["x_ptr", "y_ptr", "values_ptr", "bias_ptr"], "*bf16")
)
EPILOGUE = {"addend_ptr": None, "ACTIVATION": "none"}
INNER = {"stride_xw": 1, "stride_yw": 1}

# (file, kernel, variant, warps, constants; a constant of an argument that ends in _ptr is None or its type)
SPECS: list[tuple[str, str, str, int, dict[str, Any]]] = [
    ("apply_masks", "_apply_masks_kernel", "fp32", 4, {"BLOCK": 4096}),
    ("regularized_sgd", "_regularized_sgd_kernel", "fp32 hypersparse masked", 4, SGD),
    (
        "regularized_sgd",
        "_regularized_sgd_kernel",
        "fp32 plain",
        4,
        SGD | {"PENALTY": "none", "MASKED": False, "STATISTICS": False},
    ),
    (
        "regularized_sgd",
        "_regularized_sgd_kernel",
        "fp32 ragged scaled",
        4,
        SGD | {"ALIGNED": False, "lr_ptr": "*fp32", "grad_scale_ptr": "*fp32", "found_inf_ptr": "*fp32"},
    ),
    (
        "regularized_sgd",
        "_regularized_sgd_kernel",
        "bf16 growing_l2",
        4,
        SGD | {"W": BF16, "G": BF16, "M": BF16, "PENALTY": "growing_l2", "EIGHTS": 128},
    ),
    (
        "regularized_sgd",
        "_regularized_sgd_kernel",
        "fp64 hypersparse",
        4,
        SGD | {"W": F64, "G": F64, "M": F64, "COMPUTE": F64, "candidates_ptr": "*fp64"},
    ),
    ("regularized_adamw", "_regularized_adamw_kernel", "fp32 hypersparse masked", 4, ADAMW),
    ("regularized_adamw", "_regularized_adamw_kernel", "fp32 amsgrad", 4, AMSGRAD),
    ("sweep_observe", "_sweep_observe_kernel", "fp32 masked", 4, OBSERVE),
    (
        "add_penalty_grad",
        "_add_penalty_grad_kernel",
        "fp32 hypersparse",
        4,
        {
            "grad_scale_ptr": "*fp32",
            "W": F32,
            "G": F32,
            "COMPUTE": F32,
            "PENALTY": "hypersparse",
            "ALIGNED": True,
            "CHUNK": 16384,
            "EIGHTS": 64,
        },
    ),
    (
        "hypersparse_penalty",
        "_hypersparse_penalty_backward_kernel",
        "fp32",
        4,
        {"W": F32, "COMPUTE": F32, "ALIGNED": True, "CHUNK": 16384, "EIGHTS": 64},
    ),
    ("partials", "_add_partials_kernel", "", 4, {"found_inf_ptr": "*fp32", "LANES": 1024}),
    ("radix", "_count_digit_kernel", "fp32", 8, DIGIT | {"nan_ptr": None}),
    (
        "radix",
        "_count_digit_kernel",
        "fp64",
        8,
        DIGIT | {"W": F64, "KEY": F64, "ROUND": 5, "ALL_ROUNDS": 6, "BITS": 63, "work_ptr": None},
    ),
    ("kth_magnitude", "_kth_magnitude_kernel", "bf16", 8, SELECT | {"OUT": BF16, "out_ptr": "*bf16"}),
    ("magnitude_mask", "_count_ties_kernel", "fp32", 8, SELECT | {"W": F32, "CHUNK": 16384, "BLOCK": 2048}),
    ("magnitude_mask", "_ties_before_kernel", "", 4, {"BLOCK": 1024}),
    (
        "magnitude_mask",
        "_write_masks_kernel",
        "fp32",
        8,
        SELECT | {"W": F32, "PRUNE_TIES": False, "CHUNK": 16384, "EIGHTS": 256},
    ),
    (
        "hypersparse_sums",
        "_hypersparse_sums_kernel",
        "fp32 fall-back",
        8,
        RADIX | {"scale_ptr": None, "W": F32, "COMPUTE": F32, "ALIGNED": True, "CHUNK": 16384, "EIGHTS": 128},
    ),
    ("sweep_finish", "_prove_kernel", "fp32", 8, RADIX | {"EXACT": False}),
    ("sweep_finish", "_write_exact_kernel", "fp32", 8, RADIX | {"EXACT": False}),
    ("csr_spmm", "_csr_spmm_kernel", "fp32", 4, SPMM),
    (
        "csr_spmm",
        "_csr_spmm_kernel",
        "bf16 transposed",
        4,
        {
            "bias_ptr": "*bf16",
            "addend_ptr": "*bf16",
            "ACTIVATION": "gelu",
            "values_ptr": "*bf16",
            "b_ptr": "*bf16",
            "y_ptr": "*bf16",
            "COMPUTE": F32,
            "Y": BF16,
            "BLOCK_M": 64,
            "BLOCK_N": 32,
            "stride_bk": 1,
            "stride_ym": 1,
        },
    ),
    ("csr_sddmm", "_csr_sddmm_kernel", "fp32", 4, SDDMM),
    ("soft_threshold", "_partial_sums_kernel", "fp32 magnitudes", 4, GROUPS | {"g_ptr": None, "levels_ptr": None}),
    ("soft_threshold", "_partial_sums_kernel", "fp32 gradients", 4, GROUPS),
    (
        "soft_threshold",
        "_combine_kernel",
        "levels",
        4,
        {"COMPUTE": F32, "RELATIVE": True, "LANES": 128, "sums_ptr": None},
    ),
    (
        "soft_threshold",
        "_soft_threshold_kernel",
        "fp32",
        4,
        {k: v for k, v in GROUPS.items() if k != "ELU"} | {"Y": F32},
    ),
    ("soft_threshold", "_soft_threshold_backward_kernel", "fp32 elu", 4, GROUPS | {"W": F32, "RELATIVE": False}),
    (
        "soft_threshold",
        "_soft_threshold_backward_kernel",
        "bf16 relative",
        4,
        GROUPS | {"W": BF16, "RELATIVE": True, "ELU": False} | dict.fromkeys(["g_ptr", "w_ptr", "dw_ptr"], "*bf16"),
    ),
    ("sparse_conv2d", "_sparse_conv2d_kernel", "fp32 3x3", 4, WINDOW | {"Y": F32} | INNER | EPILOGUE),
    (
        "sparse_conv2d",
        "_sparse_conv2d_kernel",
        "bf16 3x3, addend and relu",
        4,
        WINDOW_BF16 | {"addend_ptr": "*bf16", "ACTIVATION": "relu"},
    ),
    (
        "sparse_conv2d_input_grad",
        "_sparse_conv2d_input_grad_kernel",
        "fp32 3x3",
        4,
        WINDOW | {"X": F32, "stride_xw": 1, "stride_yw": 1},
    ),
    (
        "sparse_conv2d_weight_grad",
        "_sparse_conv2d_weight_grad_kernel",
        "fp32 3x3",
        4,
        WINDOW | {"DVALUES": F32, "stride_xw": 1, "stride_yw": 1},
    ),
]


def compile_one(index: int, target: str) -> dict[str, Any]:
    """Compile one entry of SPECS for one target and read what the assembler says."""
    import triton
    import triton.language as tl
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    file, name, variant, warps, constants = SPECS[index]
    fn = getattr(importlib.import_module(f"sparse_ops.kernels.{file}"), name)
    signature, values, attributes = {}, {}, {}
    for position, parameter in enumerate(fn.params):
        argument = parameter.name
        if argument.endswith("_ptr") and constants.get(argument, "") is not None:
            signature[argument] = constants.get(argument, TYPES.get(argument, "*fp32"))
            attributes[(position,)] = [["tt.divisibility", 16]]
        elif argument in constants:
            value = constants[argument]
            signature[argument] = "constexpr"
            values[argument] = getattr(tl, value) if value in (F32, F16, BF16, F64) else value
        else:
            signature[argument] = parameter.annotation_type or "i32"
            if argument == "N" or argument.startswith("stride"):
                attributes[(position,)] = [["tt.divisibility", 16]]
    source = ASTSource(fn=fn, signature=signature, constexprs=values, attrs=attributes)
    compiled = triton.compile(source, target=GPUTarget(*TARGETS[target]), options={"num_warps": warps})
    record = {"op": name, "file": file, "variant": variant, "target": target, "warps": warps}
    record |= _amd(compiled) if target.startswith("gfx") else _nvidia(compiled)
    return record | {"shared": compiled.metadata.shared, "triton": triton.__version__}


def _nvidia(compiled: Any) -> dict[str, Any]:
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    fields = dict(re.findall(r"\b(REG|STACK|LOCAL):(\d+)", usage))
    ptx = compiled.asm["ptx"]
    loop = longest_loop(ptx)
    return {
        "registers": int(fields["REG"]),
        "spills": int(fields["STACK"]) + int(fields["LOCAL"]),
        "loads": accesses(ptx, "ld"),
        "stores": accesses(ptx, "st"),
        "loop_loads": accesses(loop, "ld"),
        "loop_stores": accesses(loop, "st"),
    }


def _amd(compiled: Any) -> dict[str, Any]:
    text = compiled.asm["amdgcn"]
    names = ("vgpr_count", "vgpr_spill_count", "private_segment_fixed_size")
    fields = {name: max(map(int, re.findall(rf"\.{name}:\s+(\d+)", text)), default=0) for name in names}
    return {
        "registers": fields["vgpr_count"],
        "spills": fields["vgpr_spill_count"] + fields["private_segment_fixed_size"],
        "loads": {"dwordx4": text.count("global_load_dwordx4")},
        "stores": {"dwordx4": text.count("global_store_dwordx4")},
    }


def accesses(ptx: str, kind: str) -> dict[str, int]:
    """How many global loads (ld) or stores (st) there are of each width, as {"v4.b32": 3}."""
    found = re.findall(rf"\b{kind}\.global\S*?\.((?:v\d\.)?[bfsu]\d+)\b", ptx)
    return {width: found.count(width) for width in sorted(set(found))}


def longest_loop(ptx: str) -> str:
    """The lines between a label and the last branch back to it, of the loop with the most lines."""
    lines = ptx.splitlines()
    labels = {line.strip()[:-1].split(":")[0]: i for i, line in enumerate(lines) if re.match(r"\$L\w+:", line.strip())}
    loops = [(0, 0)]
    for i, line in enumerate(lines):
        branch = re.search(r"\bbra(?:\.uni)?\s+(\$L\w+)", line)
        if branch and labels.get(branch[1], i) < i:
            loops.append((labels[branch[1]], i))
    first, last = max(loops, key=lambda loop: loop[1] - loop[0])
    return "\n".join(lines[first:last])


def main() -> None:
    if os.environ.get("TRITON_INTERPRET", "0") not in ("", "0"):  # the interpreter replaces the compiler in a process
        environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
        sys.exit(subprocess.run([sys.executable, "-m", "bench", "kernels", *sys.argv[1:]], env=environment).returncode)
    parser = argparse.ArgumentParser(
        prog="python -m bench kernels", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="append one JSON record per line to FILE")
    parser.add_argument("--workers", type=int, default=2, help="processes that compile")
    args = parser.parse_args()
    jobs = [(i, target) for i in range(len(SPECS)) for target in args.targets]
    head = (
        f"{'kernel':28} {'variant':26} {'target':7} {'registers':>9} {'spills':>6} {'shared':>7}  vector loads, stores"
    )
    print(head)
    with concurrent.futures.ProcessPoolExecutor(args.workers) as pool:
        for record in pool.map(compile_one, *zip(*jobs, strict=True), chunksize=2):
            wide = [{k: v for k, v in record[kind].items() if "v" in k or "x" in k} for kind in ("loads", "stores")]
            text = ", ".join(" ".join(f"{v} {k}" for k, v in w.items()) or "0" for w in wide)
            print(
                f"{record['op'].strip('_').removesuffix('_kernel'):28} {record['variant']:26} {record['target']:7} "
                f"{record['registers']:9} {record['spills']:6} {record['shared']:7}  {text}",
                flush=True,
            )
            if args.json:
                args.json.parent.mkdir(parents=True, exist_ok=True)
                with args.json.open("a") as file:
                    file.write(json.dumps(record) + "\n")
