"""``python -m server`` is ``offhook``, for where that command is not on the path."""

import sys

from server.commands.line import main

if __name__ == "__main__":
    sys.exit(main())
