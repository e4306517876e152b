"""``python -m risfast``: the same as ``risfast``."""

import sys

from risfast.cli import main

if __name__ == "__main__":
    sys.exit(main())
