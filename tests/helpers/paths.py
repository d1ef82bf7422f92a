"""Where things lie."""

import json
from pathlib import Path

TESTS = Path(__file__).resolve().parents[1]
ROOT = TESTS.parent
GOLDEN = TESTS / "golden"
SHARED = ROOT.parent / "shared"


def golden_manifest() -> dict[str, dict]:
    """The golden cases, by name."""
    return json.loads((GOLDEN / "manifest.json").read_text())
