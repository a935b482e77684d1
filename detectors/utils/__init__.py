"""What knows nothing of detection: files, processes, signals, progress, tables."""
