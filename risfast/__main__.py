"""``python -m risfast``: the same as ``risfast-train``."""

import sys

from risfast.cli import main

if __name__ == "__main__":
    sys.exit(main())
