"""The plan as people keep it: a file that some editor wrote."""

import codecs
from pathlib import Path

from ddm_fed.errors import PlanError
from ddm_fed.records.plan import Plan, read_plan_toml


def read_plan_file(path: Path) -> Plan:
    """Returns the plan that people wrote into the file `path`.

    Raises:
        PlanError: it is not UTF-8, not TOML, or not a valid plan.
        OSError: it cannot be read.
    """
    data = path.read_bytes()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        reason = "it is UTF-16"
    else:
        try:
            return read_plan_toml(data.decode("utf-8-sig"), name=path.name)
        except UnicodeDecodeError as error:
            line = data.count(b"\n", 0, error.start) + 1
            reason = f"byte {data[error.start]:#04x} in line {line} is none"
    raise PlanError(
        f"{path.name} is not written in UTF-8: {reason}",
        hint="save it as UTF-8 in your editor; iconv -f LATIN1 -t UTF-8, or -f UTF-16, does it too",
    )
