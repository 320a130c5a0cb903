"""A third of the packets is lost in each direction, and for a while all of them: every result arrives."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

from tests.conftest import missing
from tests.integration.lossy_line import RESULTS

NAMESPACES = ["unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child"]


def test_no_result_is_lost_and_one_that_comes_twice_is_known_by_its_id(tmp_path: Path) -> None:
    for tool in ("mosquitto", "ip"):
        if shutil.which(tool, path="/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/sbin") is None:
            missing(tool)
    if subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode != 0:
        missing("unshare for network namespaces, allowed to this user,")
    ours = [sys.executable, "-m", "tests.integration.lossy_line", str(tmp_path)]
    subprocess.run([*NAMESPACES, *ours], check=True, timeout=120)
    report = json.loads((tmp_path / "report.json").read_text())
    bodies = defaultdict(list)
    for line in (tmp_path / "arrived").read_text().splitlines():
        result = json.loads(line)
        bodies[result["id"]].append({**result, "replayed": None, "seq": None})
    print(f"{(tmp_path / 'lost').read_text()} packets lost, {report['sessions']} connections")
    assert bodies.keys() == {f"r{number}" for number in range(RESULTS)}
    assert all(body == same[0] for same in bodies.values() for body in same)
    assert report["sessions"] >= 2, "the cut was noticed"
    assert report["refused"] == 0
    assert int((tmp_path / "lost").read_text()) > RESULTS / 4
