"""Figures: a tidy frame drawn once, as SVG for pages, PNG for slides, PDF for a paper.

Drawn on a Figure object with the Agg canvas: pyplot's state and the user's theme are not touched.
Each is 88 or 180 mm wide, with letters of 7 points or more; in SVG and PDF text is text. The SVG
carries dark colours that apply where the reader's system asks for them. Every function takes the
names of the columns to draw, axis labels with units, and `alt`, what a reader who cannot see the
picture needs to know, by default made from the numbers; it raises ValueError on an empty frame, a
column that is not there, a number that is not finite, and a cell or point that is there twice.
"""

from .canvas import Figure
from .grids import heatmap
from .lines import curves
from .panels import heatmaps
from .points import plane, scatter
from .ranked import bars, places
from .wall import wall

__all__ = ["Figure", "bars", "curves", "heatmap", "heatmaps", "places", "plane", "scatter", "wall"]
