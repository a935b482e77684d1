"""Trained detectors at work: on data sets, on single images, as exported programs."""
