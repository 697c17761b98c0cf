"""HF PEFT's files, both ways: LoRA, DoRA, HiRA and GLoRA out, these and IA3 in.

    modules.py   the torch model's modules and heads, by the names of layers here
    experts.py   experts, whose LoRAs PEFT has in one pair of tensors
    kinds.py     the kinds of PEFT: which forms each holds, its tensors, and what they mean
    folder.py    an adapter's folder: chooses a kind and writes it, reads any

Knows the adapted model (`method`); nothing here imports torch or PEFT.
"""

from glora_jax.peft.folder import PeftAdapter, load, read, save

__all__ = ['PeftAdapter', 'load', 'read', 'save']
