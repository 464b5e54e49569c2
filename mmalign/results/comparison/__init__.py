"""Models beside each other: paired query by query, with intervals, as one table."""
