"""Do words of two languages meet inside a model? A probe of every layer, on words trained on and held out."""
