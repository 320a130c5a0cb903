"""`edge-daemon bench`: what a caption costs on this machine, stage by stage, beside what the machine could do.

`arithmetic` says what must be computed and read, `limits` what this machine does at its best, `stages` how long the
model takes, `report` puts them side by side; `random_model` makes weights where there is no model. `command` is the
command line, and the only light module: everything else is imported when the command runs.
"""
