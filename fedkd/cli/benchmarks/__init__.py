"""Benchmarks of `fedkd bench`: one file each, all with the same `run(quick, out, overrides) -> Result`."""
