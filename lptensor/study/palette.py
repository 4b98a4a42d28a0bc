"""The colours of all pictures: Okabe and Ito, Color Universal Design (2008), told apart with any colour vision."""

from __future__ import annotations

BLACK, BLUE, VERMILLION, GREEN = "#000000", "#0072B2", "#D55E00", "#009E73"
PURPLE, SKY, ORANGE = "#CC79A7", "#56B4E9", "#E69F00"  # their yellow is too pale for lines
