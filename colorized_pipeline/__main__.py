"""``python -m colorized_pipeline``: the command for launchers, such as ``torchrun -m colorized_pipeline colorize``."""

from .cli import main

if __name__ == "__main__":
    main()
