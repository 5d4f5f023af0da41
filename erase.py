"""accelerate launch erase.py [COMMAND] FLAGS — the same as `erase COMMAND FLAGS`; without a command, `erase train`."""

import sys

from erase.cli import COMMANDS, main

if __name__ == "__main__":
    arguments = sys.argv[1:]
    main(arguments if arguments[:1] and arguments[0] in (*COMMANDS, "--version") else ["train", *arguments])
