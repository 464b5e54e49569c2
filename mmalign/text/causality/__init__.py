"""Event causality: a document as a graph, its network, and the contrast with a code-switched view."""
