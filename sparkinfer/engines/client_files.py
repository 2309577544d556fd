"""An input of files on Spark Connect, whose client may be on another machine than the cluster."""

from __future__ import annotations

from sparkinfer.engines.file_input import FileInput
from sparkinfer.exceptions import InputError
from sparkinfer.files.listing import MissingInputError
from sparkinfer.plan.ports import InputTable


class ClientFiles:
    """Files that the client lists and the cluster reads; see `InputSource`.

    Args:
        files: the same for a process that is part of the cluster.
    """

    def __init__(self, files: FileInput) -> None:
        self._files = files

    def open(self) -> InputTable:
        """Returns what the files hold.

        Raises:
            InputError: one is missing here, or unreadable.
        """
        try:
            return self._files.open()
        except MissingInputError as error:
            raise InputError(
                f"{error.message}; on Spark Connect this process lists the files: have Spark read "
                "what only the cluster sees, by a query such as SELECT * FROM parquet.`/folder`, "
                "or a DataFrame"
            ) from error
