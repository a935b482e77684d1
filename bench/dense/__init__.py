"""From a dense head's outputs, the levels of a pyramid, to their gradients."""
