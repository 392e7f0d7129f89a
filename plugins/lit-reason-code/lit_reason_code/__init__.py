"""Rewards that run the model's Python against tests, in a sandbox of the Linux kernel."""
