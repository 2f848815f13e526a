"""The BERT family: an encoder that sees both directions, with heads for pretraining and classes."""
