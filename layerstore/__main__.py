"""`python -m layerstore`: the command line."""

import sys

from layerstore.cli import main

if __name__ == "__main__":
    sys.exit(main())
