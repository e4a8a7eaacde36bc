"""No pinned version has a known vulnerability, as far as the package index lists them."""

from __future__ import annotations

import functools
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

CONSTRAINTS = Path(__file__).parents[1] / "constraints"
CANARY = "jinja2==2.4.1"
"""A version with known vulnerabilities. An index that does not list them knows no advisories."""
LIMIT_S = 240

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("pip_audit") is None, reason="pip-audit is not installed: make install"
)


def audit(requirements: Path, *options: str) -> list[dict[str, Any]]:
    """What pip-audit says about each package: its vulnerabilities, or why it was left out.

    Skips the test if the index cannot be asked.
    """
    command = [
        sys.executable, "-m", "pip_audit", "--progress-spinner", "off", "--format", "json",
        "--disable-pip", *options, "--requirement", str(requirements),
    ]  # fmt: skip
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        pytest.skip(f"the package index does not answer within {LIMIT_S} s")
    if done.returncode not in {0, 1} or not done.stdout.startswith("{"):
        lines = done.stderr.strip().splitlines() or ["pip-audit said nothing"]
        if "ConnectionError" in done.stderr or "Timeout" in done.stderr:
            pytest.skip(f"the package index cannot be reached: {lines[-1][:200]}")
        pytest.fail(f"pip-audit ended with exit code {done.returncode}: {lines[-1]}")
    found: list[dict[str, Any]] = json.loads(done.stdout)["dependencies"]
    return found


@functools.cache
def _advisories_are_listed(folder: Path) -> bool:
    canary = folder / "canary.txt"
    canary.write_text(f"{CANARY}\n", encoding="utf-8")
    (found,) = audit(canary, "--no-deps")
    return bool(found.get("vulns"))


@pytest.mark.long
@pytest.mark.parametrize("name", sorted(path.stem for path in CONSTRAINTS.glob("*.txt")))
def test_no_pinned_version_is_vulnerable(
    name: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    if not _advisories_are_listed(tmp_path_factory.getbasetemp()):
        pytest.skip(f"the package index lists no vulnerability of {CANARY}: it has no advisories")
    packages = audit(CONSTRAINTS / f"{name}.txt", "--require-hashes")
    assert packages
    vulnerable = {
        f"{package['name']} {package['version']}": [
            f"{vulnerability['id']}, fixed in {', '.join(vulnerability['fix_versions']) or 'none'}"
            for vulnerability in package["vulns"]
        ]
        for package in packages
        if package.get("vulns")
    }
    assert not vulnerable
