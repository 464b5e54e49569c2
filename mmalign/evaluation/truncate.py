"""Prefixes of embeddings: the first dimensions alone, at unit length (Matryoshka, arXiv 2205.13147)."""

import numpy as np

from mmalign.core.errors import UserError


def truncate(row_ND: np.ndarray, dims: int | None) -> np.ndarray:
    """(N, D) float32 -> (N, dims) float32, contiguous, re-normalised; `dims` None: the rows as they are.

    A row whose first dimensions are all zero stays zero.
    """
    if dims is None or dims == row_ND.shape[1]:
        return row_ND
    row_Nd = np.ascontiguousarray(row_ND[:, :dims], np.float32)
    # As `torch.nn.functional.normalize` and sentence-transformers' `truncate_dim` with normalisation.
    return row_Nd / np.maximum(np.linalg.norm(row_Nd, axis=1, keepdims=True), 1e-12)


def check_dims(dims: int | None, width: int, field: str) -> None:
    """A UserError where `dims` exceeds the width of the model's vectors."""
    if dims is not None and dims > width:
        raise UserError(
            f"`{field}` is {dims}, but the model's vectors have {width} dimensions; lower it"
        )
