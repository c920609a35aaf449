"""What a picture costs in seconds and joules, and where its steps should run."""
