"""``python -m server`` is ``offhook``, for where that command is not on the path."""

import gc
import sys

gc.disable()  # what is imported stays: to walk it again and again is a quarter of a process's start

from server.commands.line import main  # noqa: E402

gc.freeze()
gc.enable()

if __name__ == "__main__":
    sys.exit(main())
