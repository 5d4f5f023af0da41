"""python -m erase COMMAND FLAGS, and accelerate launch -m erase COMMAND FLAGS: the same as `erase COMMAND FLAGS`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.argv[0] = "erase"  # what a manifest says was typed
    main()
