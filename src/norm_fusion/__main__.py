"""`python -m norm_fusion` is the norm-fusion command, for an environment that has its packages but not its scripts."""

from norm_fusion.cli import norm_fusion

norm_fusion()
