"""The built-in tasks, one module each; `mtron_eval.registry` names them."""
