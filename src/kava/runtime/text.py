"""Read text files that a user may have written: UTF-8, with or without a byte-order mark."""

from pathlib import Path

from kava.errors import UserError

ENCODING = "utf-8-sig"


def read_text(path: str | Path, what: str, cure: str) -> str:
    """Return the text of a file, with line ends as "\\n".

    Args:
        path: the file.
        what: what the file is, for the message: "suite", "input file".
        cure: what to do if it cannot be read.

    Raises:
        UserError: the file is missing, unreadable or not UTF-8.
    """
    try:
        return Path(path).read_text(encoding=ENCODING)
    except FileNotFoundError:
        raise UserError(f"{what} {path} does not exist; {cure}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{what} {path} cannot be read (byte {error.start} is not UTF-8): save it as UTF-8") from None
    # ValueError: a name that no file system accepts.
    except (OSError, ValueError) as error:
        raise UserError(f"{what} {path} cannot be read ({getattr(error, 'strerror', None) or error}); {cure}") from None
