"""The commands about this machine and this lab: what can be measured here, and whether the lab can be trusted."""
