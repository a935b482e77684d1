"""Ultralytics, if it is installed, without its user's settings and without a network."""

import os
import tempfile

import pytest

os.environ["YOLO_CONFIG_DIR"] = tempfile.mkdtemp()
os.environ["YOLO_OFFLINE"] = "true"
YOLO = pytest.importorskip("ultralytics").YOLO
SIZE, OBJECTS = 64, 3
"""Of an image."""
