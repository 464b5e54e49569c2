"""mmalign: a text encoder whose languages share one space, with images as the pivot."""

__version__ = "0.1.0"
