"""Low-rank adapters between mtron and PEFT; the public function is `mtron_ckpt.convert_adapter`.

An mtron checkpoint of adapters holds `param/<linear module>.lora_A.weight` and `.lora_B.weight`,
the parameters of modules that were trained whole under their own names, and in its configuration
the tables `model` (of the whole model) and `adapter` (fields of PEFT's `LoraConfig`).
"""
