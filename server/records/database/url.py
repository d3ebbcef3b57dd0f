"""Where the database is, as ``DATABASE_URL`` says."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError

from server.errors import ConfigurationError


def database_url(text: str) -> URL:
    """Read ``DATABASE_URL``."""
    try:
        url = make_url(text)
        if url.drivername in ("postgres", "postgresql"):
            url = url.set(drivername="postgresql+psycopg")
        dialect = url.get_dialect()
        dialect.import_dbapi()
        dialect().create_connect_args(url)
    except (ArgumentError, NoSuchModuleError) as error:
        raise ConfigurationError(f"DATABASE_URL: {_first_sentence(error)}") from None
    except (TypeError, ValueError):  # whose text may have the password in it
        raise ConfigurationError(
            "DATABASE_URL: a part of it is not what it has to be, as a port or a number behind "
            "the question mark; like sqlite:///offhook.db or postgresql://user:password@host/name"
        ) from None
    except ModuleNotFoundError as error:
        hint = "; pip install 'offhook[postgres]'" if error.name == "psycopg" else ""
        raise ConfigurationError(f"DATABASE_URL: {error.name} is not installed{hint}") from None
    return url


def _first_sentence(error: Exception) -> str:
    return str(error).splitlines()[0]


def check_database(text: str) -> None:
    """Find out before the first call whether records can ever be kept where a setting says.

    A database that is not there just now is waited for, a file as well as a server; something else
    in its place stays what it is.

    Raises:
        ConfigurationError: It is a folder, or a file of another program.
    """
    url = database_url(text)
    if url.get_backend_name() != "sqlite" or not url.database or url.query.get("uri"):
        return
    path = Path(url.database)
    try:
        is_folder = path.is_dir()
    except OSError as error:
        raise ConfigurationError(f"DATABASE_URL: {error.strerror}: {str(path)[:80]}") from None
    if is_folder:
        raise ConfigurationError(f"DATABASE_URL: {path} is a folder; name a file in it")
    try:
        if not path.is_file():
            return
        with path.open("rb") as file:
            start = file.read(len(_SQLITE_START))
    except OSError:
        return
    if start and start != _SQLITE_START:
        raise ConfigurationError(f"DATABASE_URL: {path} is a file of something else than SQLite")


_SQLITE_START = b"SQLite format 3\0"
"""How every such file begins that is not empty (SQLite's "Database File Format", 1.3)."""
