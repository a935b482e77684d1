"""The paper's tables and figures from runs on disk, its own numbers next to ours."""
