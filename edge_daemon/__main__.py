"""`python -m edge_daemon` is `edge-daemon`."""

import sys

from edge_daemon.cli import main

if __name__ == "__main__":
    sys.exit(main())
