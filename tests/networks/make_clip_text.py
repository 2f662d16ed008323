"""Makes clip_text.npz: two tiny random CLIP text models and what transformers computes with them.

python tests/networks/make_clip_text.py     # torch and transformers; made with the versions that the file says
"""

from pathlib import Path

import numpy as np
import torch
import transformers

VOCABULARY, LENGTH = 80, 10
MODELS = {"quick_gelu": {}, "gelu": {"projection_dim": 12}}
IDS = [
    [78, 1, 2, 3, 4, 5, 6, 7, 8, 79],
    [78, 40, 79, 0, 0, 0, 0, 0, 0, 0],
    [78, 79, 79, 79, 79, 79, 79, 79, 79, 79],
]


@torch.no_grad()
def main():
    torch.manual_seed(0)
    out = {"versions": f"transformers {transformers.__version__}, torch {torch.__version__}", "ids": IDS}
    for act, options in MODELS.items():
        config = transformers.CLIPTextConfig(
            vocab_size=VOCABULARY,
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=2,
            num_attention_heads=3,
            max_position_embeddings=LENGTH,
            hidden_act=act,
            eos_token_id=2,
            **options,
        )
        kind = transformers.CLIPTextModelWithProjection if options else transformers.CLIPTextModel
        model = kind(config).eval()
        for p in model.parameters():  # no bias at zero, no scale at one
            p.add_((0.1 if p.ndim == 1 else 0.05) * torch.randn_like(p))
        got = model(torch.tensor(IDS), output_hidden_states=True)
        out |= {f"{act}/hidden": torch.stack(got.hidden_states), f"{act}/last": got.last_hidden_state}
        out[f"{act}/pooled"] = got.text_embeds if options else got.pooler_output
        names = ((name.removeprefix("text_model."), p) for name, p in model.named_parameters())
        out |= {f"{act}/params/{name}": p for name, p in names}
    np.savez_compressed(Path(__file__).with_name("clip_text.npz"), **out)


if __name__ == "__main__":
    main()
