"""Log lines, as a real process writes them."""

from __future__ import annotations

import os
import subprocess
import sys

CODE = """\
import logging, sys
from edge_daemon import logs
logs.set_up(sys.argv[1])
log = logging.getLogger("edge_daemon.test")
log.debug("debug"); log.info("info"); log.warning("warning\\nof two lines")
log.error("caf\\udcff"); log.critical("critical")
try: 1 / 0
except ZeroDivisionError: log.exception("failed")
logs.set_up(sys.argv[1])
log.warning("once")
"""


def lines(level: str, *, journal: bool) -> list[str]:
    environment = {key: value for key, value in os.environ.items() if key != "JOURNAL_STREAM"}
    environment |= {"JOURNAL_STREAM": "8:1234"} if journal else {}
    done = subprocess.run(
        [sys.executable, "-c", CODE, level], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == ""
    return done.stderr.splitlines()


def test_in_the_journal_every_line_has_its_priority() -> None:
    written = lines("debug", journal=True)
    assert written[:7] == [
        "<7>debug",
        "<6>info",
        "<4>warning",
        "<4>of two lines",
        "<3>caf\\udcff",
        "<2>critical",
        "<3>failed",
    ]
    assert written[-2:] == ["<3>ZeroDivisionError: division by zero", "<4>once"]
    assert all(line.startswith("<3>") for line in written[6:-1])


def test_for_people_every_line_has_its_time() -> None:
    written = lines("info", journal=False)
    assert [line.partition(" ")[2] for line in written[:2]] == ["INFO    info", "WARNING warning"]
    assert written[0][2] == written[0][5] == ":"


def test_what_is_below_the_level_is_not_written() -> None:
    assert lines("error", journal=True)[:2] == ["<3>caf\\udcff", "<2>critical"]
