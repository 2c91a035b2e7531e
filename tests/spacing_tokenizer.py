"""A tokenizer as those of Llama 2 and Mistral: a text's spaces are letters of it, and one is put before every text."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

PIECES = [
    *("<unk>", "<s>", "</s>", "▁", "▁▁", "▁rivers", "▁run", "▁4", "▁Yes", "rivers", "run", "Yes", "4", "2", "\n", "a"),
    *("1", "r", "i", "v", "e", "s", "u", "n", "Y"),
]


def spacing_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, with a chat template that writes nothing between messages."""
    tokenizer = Tokenizer(models.Unigram([(piece, -len(PIECES) / len(piece)) for piece in PIECES], unk_id=0))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(content=" ", left=1)]
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    fast.chat_template = "{% for m in messages %}rivers{{ m.content }}{% endfor %}"
    return fast
