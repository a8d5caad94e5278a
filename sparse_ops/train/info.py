"""What sparse_ops runs on here: versions, processor, extension, Triton, and the backend of each op."""

import importlib.metadata
import pkgutil
import platform
import subprocess
from pathlib import Path

import torch

import sparse_ops
from sparse_ops import extension, launch, ops


def processor() -> str:
    """The processor's name as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def version(package: str) -> str:
    """The installed version of a package, or `not installed`."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str:
    """The commit that this package was taken from, `+changes` where files differ; `unknown` outside of a checkout."""
    root = Path(sparse_ops.__file__).parents[1]
    if not (root / ".git").exists():
        return "unknown"
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty=+changes", "--exclude=*"],
            cwd=root,
            capture_output=True,
            text=True,
            check=False,
        )
    except OSError:  # there is no git
        return "unknown"
    return said.stdout.strip() or "unknown"


def facts() -> dict[str, str]:
    """Label -> value, everything but the ops."""
    reason = extension.failure()
    cuda = torch.cuda.is_available()
    return {
        "sparse_ops": sparse_ops.__version__,
        "python": platform.python_version(),
        **{name: version(name) for name in ("torch", "triton", "numpy", "safetensors", "rich", "matplotlib")},
        "scikit-learn": version("scikit-learn"),
        "processor": processor(),
        "threads": str(torch.get_num_threads()),
        "C++ kernels": "loaded" if reason is None else f"not available: {reason}",
        "instruction set": extension.native().isa() if reason is None else "-",
        "CUDA": f"{torch.version.cuda}, {torch.cuda.get_device_name()}" if cuda else "no device",
    }


def backends() -> dict[str, tuple[str, str]]:
    """Op -> what runs it on the CPU and on CUDA here."""
    kernels = Path(sparse_ops.__file__).with_name("kernels")
    cpu = launch.backend(torch.device("cpu"))
    table: dict[str, tuple[str, str]] = {}
    for module in pkgutil.iter_modules(ops.__path__):
        if module.name.endswith("_operands") or module.name in ("bound_sweep", "transforms"):  # what several ops share
            continue
        if (kernels / f"{module.name}.py").exists():
            table[module.name] = (cpu, "triton" if torch.cuda.is_available() else "triton (no device)")
        else:
            table[module.name] = ("other ops", "other ops")
    return table


def text() -> str:
    """Everything as aligned lines."""
    lines = [f"{label:16} {value}" for label, value in facts().items()]
    table = backends()
    width = max(map(len, table))
    lines += ["", f"{'op':{width}}  {'cpu':10} cuda"]
    lines += [f"{name:{width}}  {cpu:10} {cuda}" for name, (cpu, cuda) in table.items()]
    return "\n".join(lines)
