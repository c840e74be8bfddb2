"""How many bytes of another party's are read: the one place of these bounds.

Whoever signs, sends or hands over a removable medium may write anything of any size. Every
reader of it stops at one of these, or at a size that a signed manifest states and a plan allows;
docs/format.md has the table. A file may also grow while it is read, so a reader counts what it
takes and believes no size that it was told.
"""

KIB, MIB = 1 << 10, 1 << 20

MAX_DOCUMENT_BYTES = MIB  # of a signed document; every honest one is far smaller
MAX_REQUEST_BYTES = 64 * KIB  # of a request to be enrolled that came over a network
MAX_HEADER_BYTES = MIB  # of a tensor file

MAX_ROSTERS, MAX_ROSTERS_BYTES = 9_999, 256 * MIB  # of one federation
MAX_LEAVES, MAX_LEAF_BYTES, MAX_LOG_BYTES = 100_000, 64 * KIB, 256 * MIB
MAX_REFERENCE_BYTES = 256 * MIB  # vectors of all members
MAX_ROUTER_BYTES = 1024 * MIB  # a router that was made from samples

MAX_FILES = 10_000  # in a folder of another party's, and in those below it
MAX_ENSEMBLE_FILES = 100_000  # some six of each member, and the rosters
MAX_ENTRIES = 100_000  # listed in one folder of a medium
