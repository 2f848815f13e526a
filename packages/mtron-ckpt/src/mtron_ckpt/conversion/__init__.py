"""Conversion between formats; the public function is `mtron_ckpt.convert`.

The package is not called `convert`, because a submodule of that name would hide the function.
"""
