"""Training runs: settings, the loop, checkpoints, the folder on disk."""
