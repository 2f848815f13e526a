"""Embeddings beyond the plain lookup of tokens."""

from torch import Tensor, nn


class PositionedEmbedding(nn.Embedding):
    """Looks up tokens and adds a learned vector for each one's position.

    The positions are a part of the embedding, so that who deletes, moves or cuts the embedding
    does so with both: where ranks share the tokens' rows, each adds the positions to the tokens
    whose rows it has, and their sum has every position once.

    Args:
        vocab_size: how many different tokens there are.
        num_positions: longest sequence, in tokens.
        hidden_size: width of the vectors.

    Reference: Gehring et al., arXiv:1705.03122, section 3.1.
    """

    def __init__(self, vocab_size: int, num_positions: int, hidden_size: int) -> None:
        super().__init__(vocab_size, hidden_size)
        self.positions = nn.Embedding(num_positions, hidden_size)

    def forward(self, input: Tensor, positions: Tensor | None = None) -> Tensor:
        """Return `[batch, seq, hidden]`.

        Args:
            input: tokens `[batch, seq]`, int64 (named as in `nn.Embedding`).
            positions: `[batch, seq]` or `[seq]`, int64, each less than `num_positions`; None for
                0, 1, ... in every row. A hook around this module may change the tokens, so give
                the positions by keyword.

        Raises:
            ValueError: there are more tokens in a row than positions.
        """
        embedded = super().forward(input)
        if positions is not None:
            return embedded + self.positions(positions)
        seq, known = input.shape[1], self.positions.num_embeddings
        if seq > known:
            raise ValueError(
                f"inputs: must not be longer than the {known} positions that the model has "
                f"learned, got rows of {seq} tokens; use shorter rows"
            )
        return embedded + self.positions.weight[:seq]
