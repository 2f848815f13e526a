"""The T5 family: an encoder and a decoder that reads what the encoder made, relative positions."""
