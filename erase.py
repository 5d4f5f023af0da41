"""accelerate launch erase.py --concept nudity — the same as `erase train --concept nudity`."""

import sys

from erase.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
