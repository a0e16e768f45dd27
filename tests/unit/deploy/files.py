"""Where the files for clusters are, and the versions that they have to agree with."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
KUBERAY = ROOT / "deploy" / "kuberay"


def pins(file: str = "constraints.txt") -> dict[str, str]:
    """Package to version, of a lock file."""
    lines = [line for line in (ROOT / file).read_text().splitlines() if line and not line.startswith("#")]
    found = (line.split("==") for line in lines)
    return {re.sub(r"[-_.]+", "-", name).lower(): version for name, version in found}
