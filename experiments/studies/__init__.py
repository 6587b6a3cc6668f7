"""Studies of networks: each module is a sub-command of `tools/study.py`.

A module has `add_arguments(parser)` and `run(args)`, which returns the exit
status or raises `UserError`.
"""
