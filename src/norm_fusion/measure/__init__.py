"""The GPU tower's lab: the process that measures a shard (`worker`), and what it measures with."""
