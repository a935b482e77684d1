"""Ultralytics is to leave its user's settings and the network alone: import this first."""

import os
import tempfile

os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp()
os.environ["YOLO_OFFLINE"] = "true"
SIZE, OBJECTS = 64, 3
"""Of an image."""
