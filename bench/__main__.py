"""python -m bench NAME [options]: run one benchmark; without a name, list them."""

import importlib
import sys
from pathlib import Path

STEMS = {p.stem for p in Path(__file__).parent.glob("*.py")} - {
    "__main__",
    "common",
    "fixed_mask",
    "rivals",
    "speedups",
    "weights",
}
NAMES = sorted(stem for stem in STEMS if not stem.startswith("gpu_"))


def main() -> None:
    usage = f"usage: python -m bench {{{','.join(NAMES)}}} [options]; --help after a name lists its options"
    if len(sys.argv) < 2 or sys.argv[1] in ("-h", "--help"):
        print(usage)
        return
    if sys.argv[1] not in NAMES:
        sys.exit(f"there is no benchmark {sys.argv[1]!r}; {usage}")
    name = sys.argv.pop(1)
    sys.argv[0] = name
    importlib.import_module(f"bench.{name}").main()


main()
