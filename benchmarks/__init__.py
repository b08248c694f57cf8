"""The benchmark suite: methods against problems and tasks, records and tables."""
