"""Vectors as codes: which coordinates, which points, how queries read them, and the index around them."""
