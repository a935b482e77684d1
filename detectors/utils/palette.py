"""Okabe and Ito's colours, which colour-blind readers can tell apart, as #RRGGBB.

Source: M. Okabe and K. Ito, "Color Universal Design", https://jfly.uni-koeln.de/color.
"""

BLACK = "#000000"
ORANGE = "#E69F00"
SKY_BLUE = "#56B4E9"
GREEN = "#009E73"
YELLOW = "#F0E442"
BLUE = "#0072B2"
VERMILION = "#D55E00"
PURPLE = "#CC79A7"
CLASSES = (ORANGE, SKY_BLUE, YELLOW, PURPLE, GREEN, VERMILION)
"""Of classes: without black, and without the blue that is hard to read on it."""
