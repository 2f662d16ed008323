"""What a picture was made with, as web UIs of Stable Diffusion write it into PNG files and read it from there.

text = infotext.write("a lighthouse", "fog", {"Steps": 20, "Sampler": "Euler", "Seed": 0, "Size": "512x512"})
plots.save_image("lighthouse.png", image, {infotext.KEY: text})

a lighthouse
Negative prompt: fog
Steps: 20, Sampler: Euler, Seed: 0, Size: 512x512
"""

import json
from collections.abc import Mapping

KEY = "parameters"
"""Of the text chunk of a PNG file."""

SAMPLERS: Mapping[str, str] = {
    "ddim": "DDIM",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "lms": "LMS",
    "dpmpp": "DPM++ 2M",
    "sde_dpmpp": "DPM++ 2M SDE",
    "unipc": "UniPC",
    "pndm": "PLMS",
    "lcm": "LCM",
}
"""The name that web UIs have for a solver of `samplers.named`; others keep their own."""


def write(prompt: str, negative_prompt: str, settings: Mapping[str, object]) -> str:
    """The prompts, and in the last line the settings that are not None.

    Values with a comma, a colon or a line break are quoted as in JSON.
    """
    lines = [prompt, *([f"Negative prompt: {negative_prompt}"] if negative_prompt else [])]
    said = (f"{name}: {_quoted(str(value))}" for name, value in settings.items() if value is not None)
    return "\n".join([*lines, ", ".join(said)])


def _quoted(value: str) -> str:
    return json.dumps(value, ensure_ascii=False) if any(c in value for c in ",:\n") else value
