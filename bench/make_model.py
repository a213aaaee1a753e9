"""Write a small transformer with random weights, and a tokenizer made of these lines, to a folder.

    python make_model.py DIR

Runs with the packages of the image that will load it. 270 MB of float32, the same every time.
"""

from __future__ import annotations

import sys

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import WordLevelTrainer
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast


def main() -> None:
    """Make both and save them, as `save_pretrained` does it."""
    folder = sys.argv[1]
    tokenizer = Tokenizer(WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    trainer = WordLevelTrainer(special_tokens=["[UNK]", "[EOS]"])
    tokenizer.train_from_iterator((__doc__ or "").splitlines(), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="[UNK]", eos_token="[EOS]", pad_token="[EOS]"
    )
    fast.save_pretrained(folder)
    torch.manual_seed(1)
    config = GPT2Config(vocab_size=32_000, n_layer=6, bos_token_id=1, eos_token_id=1)
    GPT2LMHeadModel(config).save_pretrained(folder, safe_serialization=True)


if __name__ == "__main__":
    main()
