"""Everything that loads or runs a model: the two towers, and models of other libraries."""
