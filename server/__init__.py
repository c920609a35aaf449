"""The Flower server: drives the rounds, distils the student, publishes checkpoints."""
