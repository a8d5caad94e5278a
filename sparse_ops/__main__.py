"""python -m sparse_ops: the command sparse-ops."""

import sys

from sparse_ops.cli import main

if __name__ == "__main__":
    sys.exit(main())
