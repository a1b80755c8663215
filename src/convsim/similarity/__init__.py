"""The quantity on tensors: Convolutional Similarity, cosines, and the bound between them."""

from convsim.similarity.convolutional import (
    Channels,
    Options,
    Pairs,
    Reduction,
    Scale,
    bank_matrix,
    bank_similarity,
    can_vary,
    convolutional_similarity,
    filter_norms,
    pair_count,
    pair_weight,
    similarity_matrix,
)
from convsim.similarity.expected import expected_similarity

__all__ = [
    "Channels",
    "Options",
    "Pairs",
    "Reduction",
    "Scale",
    "bank_matrix",
    "bank_similarity",
    "can_vary",
    "convolutional_similarity",
    "expected_similarity",
    "filter_norms",
    "pair_count",
    "pair_weight",
    "similarity_matrix",
]
