"""Chaos: the real daemon, fed with pictures while it is killed, frozen, starved, filled and cut off, at random.

    python -m tests.chaos --minutes 3 --seed 7

The last line of the output is a JSON summary. Exit code 0: all checks passed, 1: not, 69: something is missing here.
When a check fails, the daemon's log and the log of the deeds are kept, and their directory is named.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import sys
import tempfile
from pathlib import Path

from edge_daemon.errors import UnavailableError
from tests.chaos import checks
from tests.chaos.confinement import enter
from tests.chaos.evidence import Evidence
from tests.chaos.harness import Run, summary
from tests.chaos.plan import plan

SHARE = 0.85
"""Of the time goes into deeds; the rest into the start, the recovery and the stop."""
KEPT = ("daemon.log", "deeds.log", "config.yaml")


def main() -> int:
    """Run, judge, tell."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=3.0, help="about how long it takes in all (default: 3)")
    parser.add_argument("--seed", type=int, default=None, help="the same plan and pictures again (default: drawn)")
    parser.add_argument("--plan", action="store_true", help="print what would be done, and do nothing")
    parser.add_argument("--keep", type=Path, help="keep the logs in this directory whatever happens")
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(10**6) if arguments.seed is None else arguments.seed
    run_s = arguments.minutes * 60 * SHARE
    dice = random.Random(seed)
    deeds = plan(dice, run_s)
    if arguments.plan:
        print(*(f"{deed.at_s:7.1f} s  {deed}" for deed in deeds), sep="\n")
        return 0
    enter(["--minutes", str(arguments.minutes), "--seed", str(seed), *kept(arguments.keep)])
    directory = Path(tempfile.mkdtemp(prefix="edge-daemon-chaos-"))
    run = Run(directory, deeds, dice.getrandbits(32), run_s)
    try:
        evidence = asyncio.run(run())
    except UnavailableError as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 69
    finally:
        if arguments.keep:
            keep(directory, arguments.keep)
    problems = checks.judge(evidence)
    tell(run, evidence, problems, seed, directory)
    return int(bool(problems))


def kept(directory: Path | None) -> list[str]:
    """The option that keeps the logs there."""
    return ["--keep", str(directory.absolute())] if directory else []


def keep(directory: Path, there: Path) -> None:
    """Copy the logs."""
    there.mkdir(parents=True, exist_ok=True)
    for name in KEPT:
        if (directory / name).exists():
            shutil.copy(directory / name, there)


def tell(run: Run, evidence: Evidence, problems: dict[str, list[str]], seed: int, directory: Path) -> None:
    """The summary; the problems in words, and the logs kept if there are any."""
    if problems:
        there = Path(tempfile.mkdtemp(prefix="edge-daemon-chaos-kept-"))
        (directory / "deeds.log").write_text("".join(f"{done}\n" for done in evidence.deeds))
        keep(directory, there)
        print(*(f"{name}: {words}" for name, found in problems.items() for words in found), sep="\n", file=sys.stderr)
        print(f"the logs are in {there}; once more: --seed {seed}", file=sys.stderr)
    shutil.rmtree(directory, ignore_errors=True)
    print(json.dumps(summary(run, evidence, problems, seed)), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    sys.exit(main())
