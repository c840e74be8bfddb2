"""Folders elsewhere: a medium, a share, or anything that fsspec knows by a URL.

    folder = open_folder("sftp://files.example/exchange")
    folder.entries("incoming")      what is there; links are named, never followed
    folder.reading("incoming/…")    in blocks, from any byte
    folder.writing("incoming/…")    in blocks, going on where it can

A plain path and `file://` use the system's own calls, which refuse links; all else goes through
fsspec. Neither believes anything it reads.
"""

from ddm_fed.remote.base import Entry as Entry
from ddm_fed.remote.base import RemoteFolder as RemoteFolder
from ddm_fed.remote.base import Source as Source
from ddm_fed.remote.opening import open_folder as open_folder
from ddm_fed.remote.opening import shown as shown
