"""python -m bench NAME [options]: run one benchmark; without a name, list them."""

import importlib
import sys
from pathlib import Path

NAMES = sorted(p.stem for p in Path(__file__).parent.glob("*.py") if p.stem not in {"__main__", "common"})


def main() -> None:
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        asked = "" if len(sys.argv) < 2 or sys.argv[1].startswith("-") else f"there is no benchmark {sys.argv[1]!r}; "
        sys.exit(f"{asked}usage: python -m bench {{{','.join(NAMES)}}} [options]")
    name = sys.argv.pop(1)
    sys.argv[0] = name
    importlib.import_module(f"bench.{name}").main()


main()
