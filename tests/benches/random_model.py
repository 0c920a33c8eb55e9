#!/usr/bin/env python3
"""A model folder in Qwen3-1.7B's shape with random bf16 weights, for speed and for storms.

    python tests/benches/random_model.py FOLDER

It needs mlx_lm and tokenizers. What the model says is noise, in words that its tokenizer knows.
"""

import json
import sys
from pathlib import Path

from gpu import CONFIG, build
from gpu_http import tokenizer

CHAT = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}assistant:"


def main():
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    build(folder)
    tokenizer(folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | dict(chat_template=CHAT)))
    config = CONFIG | dict(eos_token_id=CONFIG["vocab_size"] - 1)
    (folder / "config.json").write_text(json.dumps(config))


if __name__ == "__main__":
    main()
