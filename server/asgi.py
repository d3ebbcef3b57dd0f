"""What hypercorn loads: ``hypercorn -c server/hypercorn.toml server.asgi:app``."""

from __future__ import annotations

import sys

from server import logs
from server.app import create_app
from server.errors import ConfigurationError
from server.hooks.hypercorn_worker import begin_under_command
from server.hooks.sockets import raise_file_limit
from server.logs import output
from server.settings.settings import Settings

begin_under_command()
output.take_over()
try:
    settings = Settings.load()
    logs.configure(level=settings.log_level, json=settings.log_json)
    raise_file_limit()
    app = create_app(settings)
except ConfigurationError as error:
    sys.exit(f"offhook: {error}")
