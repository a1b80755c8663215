"""Convolutional Similarity and its gradient, by the fastest means at hand.

One question (`problem`), several answers, each checked against `convsim.similarity`: ``compiled``
(C++, on a CPU with a compiler), ``fused`` (Triton, on an NVIDIA GPU, crossed form), ``eager``
(torch alone, anywhere), and ``sharded`` for filters that lie on several processes. The environment
variable ``CONVSIM_BACKEND=eager`` keeps to torch. Sampled feature maps have their C++ in `maps`;
`library` builds both.
"""

from convsim.backends.dispatch import add_gradients_

__all__ = ["add_gradients_"]
