"""What hypercorn loads: ``hypercorn -c server/hypercorn.toml server.asgi:app``."""

from __future__ import annotations

import gc
import sys

gc.disable()  # what is imported stays: to walk it again and again is a quarter of a process's start

from server import logs  # noqa: E402
from server.app import create_app  # noqa: E402
from server.errors import ConfigurationError  # noqa: E402
from server.hooks.hypercorn_worker import begin_under_command  # noqa: E402
from server.hooks.sockets import raise_file_limit  # noqa: E402
from server.logs import output  # noqa: E402
from server.settings.settings import Settings  # noqa: E402

gc.freeze()
gc.enable()

begin_under_command()
output.take_over()
try:
    settings = Settings.load()
    logs.configure(level=settings.log_level, json=settings.log_json)
    raise_file_limit()
    app = create_app(settings)
except ConfigurationError as error:
    sys.exit(f"offhook: {error}")
