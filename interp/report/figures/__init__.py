"""Figures: a tidy frame drawn once, as SVG for pages and PNG for slides.

Drawn on a Figure object with the Agg canvas: pyplot's state and the user's theme are not touched.
The SVG carries dark colours that apply where the reader's system asks for them. Every function
takes the names of the columns to draw, axis labels with units, and `alt`, what a reader who cannot
see the picture needs to know; it raises ValueError on an empty frame, a column that is not there,
a number that is not finite, and a cell or point that is there twice.
"""

from .canvas import Figure
from .grids import heatmap
from .lines import curves
from .points import plane, scatter
from .ranked import bars, places
from .wall import wall

__all__ = ["Figure", "bars", "curves", "heatmap", "places", "plane", "scatter", "wall"]
