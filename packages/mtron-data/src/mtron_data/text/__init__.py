"""Raw text: which files, in which pieces, and the documents in them."""
