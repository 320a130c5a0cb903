"""`edge-daemon doctor`: what this machine is like, what is wrong with it, what that means, and what mends it.

`finding` and `checkup` are the core and know no check; each other module looks at one thing and yields findings.
Reads only, but for `--fix`. Importing this package loads nothing of what it examines: torch is tried in a child.
"""
