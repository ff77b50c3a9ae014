"""Figures for print: views as SVG in points, with a title and a scale, without the controls of a page."""
