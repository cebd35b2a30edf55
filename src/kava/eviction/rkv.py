"""`rkv`: keep the entries that are attended to and not redundant. R-KV (arXiv 2505.24133), as KaVa uses it (arXiv 2510.02312)."""

from jaxtyping import Float
from torch import Tensor

from kava.eviction.attention import normalised_importance
from kava.eviction.cosine import redundancy
from kava.eviction.trace import Options, Trace


def rkv(trace: Trace, options: Options) -> Float[Tensor, "L B H C"]:
    """S = lambda I + (1 - lambda) R; both terms sum to 1 over an example's real entries."""
    scores = options.lam * normalised_importance(trace) + (1 - options.lam) * redundancy(trace)
    return trace.hide_padding(scores)
