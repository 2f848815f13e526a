"""A bias of attention scores that depends on how far apart two tokens are."""

from torch import Tensor, nn

from mtron_models import ops


class RelativeBias(nn.Module):
    """Looks up, for every head, what the distance of a query and a key adds to their score.

    Args:
        num_buckets: distances that are told apart.
        max_distance: from here on they are not.
        num_heads: query heads.
        bidirectional: whether queries see keys that come after them.

    Reference: Raffel et al., arXiv:1910.10683, section 2.1.
    """

    def __init__(
        self, num_buckets: int, max_distance: int, num_heads: int, *, bidirectional: bool
    ) -> None:
        super().__init__()
        self.table = nn.Embedding(num_buckets, num_heads)
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional

    def forward(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """Return the bias of every score, `[batch or 1, heads, queries, keys]`.

        Args:
            query_positions: `[queries]` or `[batch, queries]`, int64.
            key_positions: `[keys]` or `[batch, keys]`, int64.
        """
        distance = key_positions[..., None, :] - query_positions[..., :, None]
        buckets = ops.relative_buckets(
            distance, self.num_buckets, self.max_distance, bidirectional=self.bidirectional
        )
        bias = self.table(buckets).movedim(-1, -3)
        return bias if bias.dim() == 4 else bias[None]
