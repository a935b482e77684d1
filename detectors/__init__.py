"""Reference detectors, training harness and demo around the Joint Optimization Loss."""
