"""Makes tiny_tokenizer/, as transformers saves it, and hard_cases.json: what transformers makes of the strings there.

python tests/text/make_tiny_tokenizer.py     # transformers, and gen_jax for the merges
"""

import json
import sys
import tempfile
from pathlib import Path

import transformers

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]
from strings import HARD

from gen_jax import text

FOLDER = HERE / "tiny_tokenizer"
SPECIAL = {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>"}
CAPTIONS = [
    *(f"a {size} {colour} {digit}" for size in ("small", "large") for colour in ("red", "blue")
      for digit in ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")),
    "it's above, they're below; lower and lowest", "große Straße größer", "число и ещё число", "你好 你们好",
    "aaaa aaa", "!!! ...",
]  # fmt: skip


def load(folder, pad):
    """transformers' tokenizer of the vocabulary in `folder`, padded by `pad`."""
    return transformers.CLIPTokenizer(
        str(folder / "vocab.json"), str(folder / "merges.txt"), pad_token=pad, **SPECIAL
    )


def write(tokenizer, folder):
    """`vocab.json` and `merges.txt`."""
    folder.mkdir(exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(tokenizer.vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = "".join(f"{merge}\n" for merge in tokenizer.merges)
    (folder / "merges.txt").write_text("#version: 0.2\n" + lines, encoding="utf-8")


def main():
    write(text.train(CAPTIONS, num_merges=150), FOLDER)
    cases = {"versions": f"transformers {transformers.__version__}", "strings": HARD}
    for pad in ("<|endoftext|>", "!"):
        peer = load(FOLDER, pad)
        cases[pad] = [peer(each, add_special_tokens=False)["input_ids"] for each in HARD]
    (HERE / "hard_cases.json").write_text(json.dumps(cases) + "\n")
    with tempfile.TemporaryDirectory() as folder:  # pad "!" differs most from the default
        peer.save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (FOLDER / name).write_text((Path(folder) / name).read_text())


if __name__ == "__main__":
    main()
