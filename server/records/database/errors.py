"""What a database says when it does not do what it is asked: of which kind its trouble is."""

from __future__ import annotations

from sqlalchemy.exc import (
    DataError,
    DBAPIError,
    IntegrityError,
    InterfaceError,
    ProgrammingError,
    SQLAlchemyError,
    StatementError,
)

from server.errors import ServerError


class DatabaseClosed(SQLAlchemyError):
    """The server stops, and the database was closed before."""


class DatabaseHangs(SQLAlchemyError):
    """The database has said nothing for too long; what it was asked for, it may do yet."""


class SchemaTooNew(ServerError):
    """The database was written by a later version of this program."""


THEIRS = (SQLAlchemyError, SchemaTooNew, OSError)
"""What a database that is locked, gone, full or of another version raises, or the system, if it has
no thread to ask it in; all else is a bug."""


def is_about_data(error: Exception) -> bool:
    """Whether a database, or its driver, will never take what it was given."""
    if isinstance(error, DBAPIError):
        state = getattr(error.orig, "sqlstate", None)
        return (
            isinstance(error, DataError)
            or (isinstance(error, IntegrityError) and not is_there_already(error))
            # The driver itself does not know what to do with a value's type, or the row or its
            # index entry is too large (PostgreSQL, "Appendix A. Error Codes", class 54).
            or (isinstance(error, ProgrammingError | InterfaceError) and _is_binding(error))
            or (state or "").startswith("54")
        )
    # What is no driver's error was raised on the way to it, by one of the values.
    return isinstance(
        error, StatementError | ValueError | TypeError | OverflowError | RecursionError
    )


def is_there_already(error: DBAPIError) -> bool:
    """Whether somebody else has written the same row meanwhile; a later attempt replaces it."""
    return getattr(error.orig, "sqlstate", None) == "23505"


def lacks_tables(error: DBAPIError) -> bool:
    """Whether the database is empty: another has come in the place of the one that had them."""
    state = getattr(error.orig, "sqlstate", None)
    return state == "42P01" or "no such table" in str(error.orig)


def _is_binding(error: DBAPIError) -> bool:
    words = str(error.orig)
    return "cannot adapt" in words or "binding parameter" in words
