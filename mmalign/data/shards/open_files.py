"""Files of a data set that stay open while its samples are read.

    name -> descriptor, opened by the folder; those used longest ago are closed, and all with their owner

A stream opens two files a shard and may go through thousands of shards, while a process has 1,024 descriptors
and shares them with sockets and pipes. Descriptors are numbers, which Python does not close by itself.
"""

import os
from collections import OrderedDict
from typing import Any

from mmalign.data.shards.folder import Folder

MOST_OPEN = 256  # of all data sets of a stream


class OpenFiles:
    """Descriptors by name of file.

    Attributes:
        most: that are open at a time.
    """

    def __init__(self, folder: Folder, most: int = MOST_OPEN) -> None:
        self.folder, self.most = folder, most
        self._open: OrderedDict[str, int] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:  # a loader's worker opens its own files
        return type(self), (self.folder, self.most)

    def __del__(self) -> None:
        self.close()

    def descriptor(self, name: str) -> int:
        """For reading a file; valid until so many others were asked for.

        Raises:
            OSError: it cannot be opened.
            UserError: it cannot be fetched.
        """
        if name in self._open:
            self._open.move_to_end(name)
            return self._open[name]
        while len(self._open) >= self.most:
            os.close(self._open.popitem(last=False)[1])
        self._open[name] = self.folder.open(name)
        return self._open[name]

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])
