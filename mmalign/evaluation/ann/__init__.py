"""The FAISS benchmark: approximate nearest neighbours, measured against exact search and against the task."""
