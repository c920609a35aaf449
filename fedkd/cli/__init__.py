"""The fedkd command line: one file a verb."""
