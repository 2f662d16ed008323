"""Strings that are hard for a tokenizer, chosen and random."""

import random

HARD = [
    "",
    " ",
    "a large red seven above a small blue three",
    "Two GREEN nines, it's 42!",
    "  leading,\ttabs\nand \r\n lines  ",
    "IT'S they'Re we'VE I'm you'LL he'd don't 's ''s '''ll 'x x'",
    "!", "!!", "wow!", "wow !!! 1!2", "!'s", "'!s", "#!?",
    "1234567890 3.14 1e-5 x² ½ Ⅷ ٣٤ 二〇",
    "<|startoftext|>", "<|endoftext|>", "a<|endoftext|>b", "<|ENDOFTEXT|> <|StartOfText|>!", "!<|endoftexT|>!!",
    "<|endoftext", "|>", "<|<|endoftext|>|>", "<|endoftext |>",
    "a</w>b </w>", "</w>",
    "größer GRÖSSE straße ẞ",
    "e\u0301 e\u0323\u0301 \u0301 a\u0301\u0301 A\u030a \u212b",  # combining marks
    "ΑΣ ΟΔΥΣΣΕΥΣ Σ σς",  # final sigma
    "İstanbul IĞDIR ıi ǅ Ǆ",
    "Ｆｕｌｌ　ｗｉｄｔｈ ﬁ ﬀ",
    "число ЧИСЛО ё й",
    "你好，世界。 日本語テキスト 한국어 \u1112\u1161\u11ab",
    "שלום עולם سلام दुनिया ไทย",
    "😀 👨‍👩‍👧‍👦 🇩🇪 👍🏽 ❤️ a😀b",
    "\u200b\u200d\ufeff\u00ad a\u200bb",
    "\x00\x01\x1b\x7f a\x00b",
    "a\x1cb\x1dc\x1ed\x1fe a\x85b a\xa0b a\u1680b a\u180eb a\u2003b a\u2028b a\u2029b a\u202fb a\u3000b",
    "‘curly’ “quotes” it’s — – … «»",
    "&amp; &lt;b&gt; <b>x</b>",
    "a_b-c/d\\e (f) [g] {h} 10% $5 @me #tag",
    "𝒜𝔅 𐐀 𐐨 𝟙 𓀀",
    "\U0010ffff \ue000 \ufffd \uffff",
    "a\u1c89b \ua7cb\ua7ce \U00010d50\U00010d4a \U00016ea0 \U00031350a 1\U000116d0\U0001e5f1",  # newer than Unicode 14
    "e\u1df7\u073b e\u1e2ec\u0323 \U00011935\U00011930 e\U00010f46\u0301",  # newer than Unicode 9
    "x" * 200,
    "ab" * 100,
    "aaaaaaa aaaa aaa",
]  # fmt: skip

PARTS = [
    "a", "E", "z", "red", "seven", "0", "7", " ", "  ", "\t", "\n", "\r", "\x0b", "\x0c", "\x00", "\x1c", "\x1f", "\x7f",
    "\x85", "\xa0", "\u1680", "\u180e", "\u2007", "\u200b", "\u200d", "\u2028", "\u202f", "\u3000", "\ufeff",
    "'", "'s", "'T", "'re", "'ve", "'m", "'LL", "'d", "!", "?", "-", "_", "<", "|", ">", "<|", "|>", "</w>",
    "<|startoftext|>", "<|endoftext|>", "startoftext", "<|EndOfText|>",
    "é", "e\u0301", "\u0301", "\u0323", "\u0338", "\u20dd", "Å", "\u212b", "ß", "ẞ", "Σ", "σ", "İ", "I", "ı", "ǅ", "ﬁ",
    "Ω",
    "²", "½", "Ⅷ", "٣", "五", "〇", "①", "你", "か", "\u3099", "가", "\u1100", "\u1161", "\u11a8", "ह", "\u093f", "ไ",
    "😀", "👍", "🏽", "❤", "\ufe0f", "🇩", "𝒜", "𐐀", "𝟙", "\U000e0001", "\U0010ffff", "\ue000", "…", "’", "“", "。",
    "€", "№",
]  # fmt: skip


def at_random(n, seed=0):
    """`n` strings of parts that are hard next to each other, and of any characters."""
    rng = random.Random(seed)

    def any_character():
        code = rng.choice((rng.randrange(0x250), rng.randrange(0x3000), rng.randrange(0x110000)))
        return chr(code) if not 0xD800 <= code < 0xE000 else "a"

    for _ in range(n):
        mostly_parts = rng.random() < 0.7
        draw = lambda: (
            rng.choice(PARTS) if rng.random() < (0.95 if mostly_parts else 0.2) else any_character()
        )
        yield "".join(draw() for _ in range(rng.randrange(1, 14)))
