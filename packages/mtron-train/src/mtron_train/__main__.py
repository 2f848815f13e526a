"""`python -m mtron_train` is the command `mtron-train`."""

from mtron_train.cli import main

main()
