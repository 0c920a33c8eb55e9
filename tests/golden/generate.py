"""Makes the golden data: tiny random models, and what mlx-lm computes with them.

    python3 -m venv venv
    venv/bin/pip install 'mlx[cpu]==0.32.2' mlx-lm==0.32.2 gguf==0.19.0 numpy
    venv/bin/python tests/golden/generate.py tiny tests/golden/data
    venv/bin/python tests/golden/generate.py default target/models/smollm2-135m-instruct.gguf \
        tests/golden/data/smollm2.json

Everything is kept in the repository, so this runs only when an architecture or a format is added; the
same versions give the same files. mlx-lm computes in f32, whatever the file's type, because that is
what Interlock computes in on the CPU, where the tests run: what is compared is the arithmetic of
the model, not the rounding of a type. GGUF is compared with mlx-lm on the same weights,
dequantized by the `gguf` package and with the rows of queries and keys put back in order.

`convert` writes the dequantized f32 model that `compare.py` measures mlx-lm with.
"""

import argparse
import json
import os
import shutil
from pathlib import Path

# MLX's CPU compiler would run g++ for each fused operation.
os.environ.setdefault("MLX_DISABLE_COMPILE", "1")

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import _get_classes, load_model

# mlx-lm 0.32.2 passes an argument that MLX 0.32.2 has not; it is None for affine weights.
_gather_qmm = mx.gather_qmm
mx.gather_qmm = lambda *args, global_scale=None, **kwargs: _gather_qmm(*args, **kwargs)

PROMPT = [3, 17, 42, 5, 88, 61, 2, 29, 29, 70, 11, 94]
STEPS = 8

BASE = dict(
    hidden_size=32,
    num_hidden_layers=2,
    intermediate_size=64,
    num_attention_heads=4,
    num_key_value_heads=2,
    rms_norm_eps=1e-5,
    vocab_size=96,
    max_position_embeddings=512,
    rope_theta=10000.0,
    tie_word_embeddings=True,
    bos_token_id=1,
    eos_token_id=2,
)
# Wavelengths here are 6, 63, 628 and 6283: one is kept, one blended, two stretched.
LLAMA3 = dict(
    rope_type="llama3",
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
LLAMA = dict(BASE, model_type="llama")
QWEN2 = dict(BASE, model_type="qwen2", rope_theta=1000000.0)
QWEN3 = dict(BASE, model_type="qwen3", head_dim=16, rope_theta=1000000.0)
QWEN3_MOE = dict(QWEN3, model_type="qwen3_moe", num_experts=6, num_experts_per_tok=2,
                 decoder_sparse_step=1, mlp_only_layers=[], moe_intermediate_size=32,
                 norm_topk_prob=True)

SAFETENSORS = {
    "llama-f32": (dict(LLAMA, tie_word_embeddings=False), dict(dtype=mx.float32)),
    "llama3-rope-bf16": (dict(LLAMA, rope_scaling=LLAMA3), dict(dtype=mx.bfloat16)),
    "llama-bias-linear-f16": (
        dict(LLAMA, attention_bias=True, mlp_bias=True, head_dim=16,
             rope_scaling=dict(type="linear", factor=4.0)),
        dict(dtype=mx.float16),
    ),
    "llama-4bit": (LLAMA, dict(dtype=mx.float32, bits=4)),
    "qwen2-bf16-sharded": (QWEN2, dict(dtype=mx.bfloat16, shards=3)),
    "qwen3-f32": (QWEN3, dict(dtype=mx.float32)),
    "qwen3-yarn-f16": (
        dict(QWEN3, rope_scaling=dict(rope_type="yarn", factor=4.0,
                                      original_max_position_embeddings=64)),
        dict(dtype=mx.float16),
    ),
    "qwen3-8bit": (dict(QWEN3, tie_word_embeddings=False), dict(dtype=mx.bfloat16, bits=8)),
    "qwen3-moe-bf16": (dict(QWEN3_MOE, norm_topk_prob=False), dict(dtype=mx.bfloat16)),
    # The first layer is dense, so that it can have the setting of its own.
    "qwen3-moe-4bit": (dict(QWEN3_MOE, mlp_only_layers=[0]), dict(dtype=mx.float32, bits=4)),
}
Q = gguf.GGMLQuantizationType
GGUF = {
    "gguf-llama-f32": (dict(LLAMA, rope_scaling=LLAMA3), Q.F32),
    "gguf-llama-f16": (dict(LLAMA, tie_word_embeddings=False), Q.F16),
    "gguf-llama-q4_0": (LLAMA, Q.Q4_0),
    "gguf-llama-q4_1": (LLAMA, Q.Q4_1),
    "gguf-llama-q8_0": (dict(LLAMA, rope_scaling=dict(type="linear", factor=4.0)), Q.Q8_0),
    "gguf-qwen2-q8_0": (QWEN2, Q.Q8_0),
    "gguf-qwen3-q4_0": (QWEN3, Q.Q4_0),
}


def build(config):
    model_class, args_class = _get_classes(config)
    return model_class(args_class.from_dict(config))


def random_weights(model, seed):
    """Large enough that logits differ, small enough that nothing saturates."""
    random = np.random.default_rng(seed)
    weights = {}
    for name, array in tree_flatten(model.parameters()):
        noise = random.standard_normal(array.shape).astype(np.float32)
        if "norm" in name:
            noise = 1.0 + 0.2 * noise
        elif name.endswith("bias"):
            noise = 0.3 * noise
        elif "embed_tokens" in name:
            noise = 0.7 * noise
        else:
            noise = 1.5 * noise / np.sqrt(array.shape[-1])
        weights[name] = noise
    return weights


def expect(model):
    """Logits after each prompt token, and after each greedily chosen one."""
    model.set_dtype(mx.float32)
    cache = make_prompt_cache(model)
    logits = model(mx.array([PROMPT]), cache=cache)[0]
    rows, tokens = [row for row in np.array(logits)], []
    for _ in range(STEPS):
        tokens.append(int(rows[-1].argmax()))
        rows.append(np.array(model(mx.array([tokens[-1:]]), cache=cache)[0, -1]))
    # The greedy tokens must not hang on rounding.
    gaps = [float(np.diff(np.sort(row)[-2:])[0]) for row in rows[len(PROMPT) - 1:-1]]
    assert min(gaps) > 1e-3, gaps
    kept = rows[:1] + rows[len(PROMPT) // 2:len(PROMPT) // 2 + 1] + rows[len(PROMPT) - 1:]
    positions = [0, len(PROMPT) // 2] + list(range(len(PROMPT) - 1, len(rows)))
    return dict(
        prompt=PROMPT,
        greedy=tokens,
        logits=[dict(position=p, values=[round(float(x), 6) for x in row])
                for p, row in zip(positions, kept)],
    )


def write_json(path, value):
    text = json.dumps(value, indent=1)
    # One row of numbers a line: a diff then shows which position changed.
    path.write_text(__import__("re").sub(r"\n\s+(-?[\d.e-]+,?)(?=\n)", r" \1", text) + "\n")


def write_tokenizer(folder):
    """Enough for the loader; golden tests speak token ids."""
    added = [dict(id=i, content=t, special=True) for i, t in enumerate(["<unk>", "<s>", "</s>"])]
    write_json(folder / "tokenizer.json", dict(version="1.0", added_tokens=added))
    write_json(folder / "tokenizer_config.json", dict(
        bos_token="<s>", eos_token=dict(content="</s>"), chat_template="{{ messages }}"))


def write_safetensors(folder, config, seed, dtype, bits=None, shards=1):
    folder.mkdir(parents=True)
    model = build(config)
    weights = random_weights(model, seed)
    model.load_weights([(name, mx.array(array)) for name, array in weights.items()])
    model.set_dtype(dtype)
    if bits:
        # One module has another setting, one none, as mlx_lm's mixed recipes have.
        quantization = dict(group_size=32, bits=bits)

        def predicate(path, module):
            if not hasattr(module, "to_quantized"):
                return False
            if path.endswith("layers.0.mlp.down_proj"):
                return dict(group_size=64, bits=6)
            return not path.endswith("layers.1.self_attn.o_proj")

        nn.quantize(model, **quantization, class_predicate=predicate)
        quantization["model.layers.0.mlp.down_proj"] = dict(group_size=64, bits=6)
        quantization["model.layers.1.self_attn.o_proj"] = False
        config = dict(config, quantization=quantization, quantization_config=quantization)
    arrays = dict(tree_flatten(model.parameters()))
    names = sorted(arrays)
    if shards == 1:
        mx.save_safetensors(str(folder / "model.safetensors"), arrays, metadata={"format": "mlx"})
    else:
        weight_map = {}
        for shard in range(shards):
            file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
            part = {name: arrays[name] for name in names[shard::shards]}
            weight_map |= {name: file for name in part}
            mx.save_safetensors(str(folder / file), part, metadata={"format": "mlx"})
        index = dict(metadata=dict(total_size=0), weight_map=weight_map)
        write_json(folder / "model.safetensors.index.json", index)
    write_json(folder / "config.json", config)
    write_tokenizer(folder)
    # As mlx-lm itself loads the folder: its reading of the files is part of what is compared.
    write_json(folder / "expected.json", expect(load_model(folder, lazy=False)[0]))


def permute(rows, heads):
    """What llama.cpp's converter does to Llama's queries and keys."""
    return (rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2)
            .reshape(rows.shape))


def unpermute(rows, heads):
    return (rows.reshape(heads, rows.shape[0] // heads // 2, 2, -1).swapaxes(1, 2)
            .reshape(rows.shape))


PARTS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
FIXED = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def gguf_name(name):
    module, kind = name.rsplit(".", 1)
    if module in FIXED:
        return f"{FIXED[module]}.{kind}"
    layer, part = module.removeprefix("model.layers.").split(".", 1)
    return f"blk.{layer}.{PARTS[part]}.{kind}"


def heads_of(name, config):
    """How many heads' rows a tensor of a Llama holds, if its rows are permuted in GGUF."""
    if config["model_type"] != "llama":
        return None
    if "q_proj.weight" in name:
        return config["num_attention_heads"]
    return config["num_key_value_heads"] if "k_proj.weight" in name else None


def rope_divisors(config):
    """`rope_freqs.weight`, as llama.cpp's convert_hf_to_gguf.py computes it for Llama 3."""
    scaling, dims = config["rope_scaling"], config["hidden_size"] // config["num_attention_heads"]
    frequencies = 1.0 / config["rope_theta"] ** (np.arange(0, dims, 2) / dims)
    context, factor = scaling["original_max_position_embeddings"], scaling["factor"]
    low, high = scaling["low_freq_factor"], scaling["high_freq_factor"]
    divisors = []
    for frequency in frequencies:
        wavelength = 2 * np.pi / frequency
        if wavelength < context / high:
            divisors.append(1.0)
        elif wavelength > context / low:
            divisors.append(factor)
        else:
            smooth = (context / wavelength - low) / (high - low)
            divisors.append(1.0 / ((1 - smooth) / factor + smooth))
    return np.array(divisors, dtype=np.float32)


def write_gguf(folder, config, seed, kind):
    folder.mkdir(parents=True)
    model = build(config)
    architecture = config["model_type"]
    writer = gguf.GGUFWriter(str(folder / "model.gguf"), architecture)
    writer.add_name(folder.name)
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_rope_freq_base(config["rope_theta"])
    if "head_dim" in config:
        writer.add_key_length(config["head_dim"])
        writer.add_value_length(config["head_dim"])
    scaling = config.get("rope_scaling")
    if scaling and scaling.get("type") == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(scaling["factor"])
    elif scaling:
        writer.add_tensor("rope_freqs.weight", rope_divisors(config))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([f"t{i}" for i in range(config["vocab_size"])])
    writer.add_token_types([1] * config["vocab_size"])
    writer.add_token_merges(["t 1"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template("{{ messages }}")

    meant = []
    for name, array in random_weights(model, seed).items():
        heads = heads_of(name, config)
        stored = permute(array, heads) if heads else array
        own = Q.F32 if array.ndim == 1 else kind
        packed = gguf.quants.quantize(stored, own)
        writer.add_tensor(gguf_name(name), packed, raw_dtype=own)
        numbers = gguf.quants.dequantize(packed, own).reshape(array.shape).astype(np.float32)
        meant.append((name, mx.array(unpermute(numbers, heads) if heads else numbers)))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    model.load_weights(meant)
    write_json(folder / "expected.json", expect(model))


def tiny(out):
    for seed, (name, (config, options)) in enumerate(SAFETENSORS.items()):
        shutil.rmtree(out / name, ignore_errors=True)
        write_safetensors(out / name, config, seed, **options)
        print(name)
    for seed, (name, (config, kind)) in enumerate(GGUF.items()):
        shutil.rmtree(out / name, ignore_errors=True)
        write_gguf(out / name, config, 200 + seed, kind)
        print(name)


def field(reader, key):
    return reader.fields[key].contents()


def from_gguf(path):
    """A Llama from GGUF as an mlx-lm model in f32, its configuration, and the reader."""
    reader = gguf.GGUFReader(path)
    architecture = field(reader, "general.architecture")
    key = lambda name: field(reader, f"{architecture}.{name}")
    config = dict(
        model_type=architecture,
        hidden_size=key("embedding_length"),
        num_hidden_layers=key("block_count"),
        intermediate_size=key("feed_forward_length"),
        num_attention_heads=key("attention.head_count"),
        num_key_value_heads=key("attention.head_count_kv"),
        rms_norm_eps=key("attention.layer_norm_rms_epsilon"),
        max_position_embeddings=key("context_length"),
        rope_theta=key("rope.freq_base"),
        vocab_size=len(field(reader, "tokenizer.ggml.tokens")),
        tie_word_embeddings=not any(t.name == "output.weight" for t in reader.tensors),
    )
    model = build(config)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    weights = []
    for name, array in tree_flatten(model.parameters()):
        tensor = tensors[gguf_name(name)]
        numbers = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        numbers = numbers.reshape(array.shape).astype(np.float32)
        heads = heads_of(name, config)
        weights.append((name, mx.array(unpermute(numbers, heads) if heads else numbers)))
    model.load_weights(weights)
    mx.eval(model.parameters())
    return model, config, reader


def tokenizer_of(reader):
    """SmolLM2's byte-level BPE, from the metadata."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokens = field(reader, "tokenizer.ggml.tokens")
    kinds = field(reader, "tokenizer.ggml.token_type")
    merges = [tuple(merge.split(" ")) for merge in field(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(tokens)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(t, special=True)
                                  for t, kind in zip(tokens, kinds) if kind == 3])
    return tokenizer


QUESTIONS = [
    "What is the capital of France?",
    "Write a haiku about the sea.",
    "Name three primary colours.",
    "How many days are there in a week?",
]


def default(path, out):
    model, _, reader = from_gguf(path)
    tokenizer = tokenizer_of(reader)
    cases = []
    for question in QUESTIONS:
        text = (f"<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
                f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n")
        prompt = tokenizer.encode(text, add_special_tokens=False).ids
        cache = make_prompt_cache(model)
        logits = model(mx.array([prompt]), cache=cache)[0, -1]
        greedy, smallest = [], float("inf")
        for _ in range(40):
            row = np.array(logits)
            gap = float(np.diff(np.sort(row)[-2:])[0])
            # Where two tokens are this close, rounding may decide: compare up to there.
            if gap < 0.05:
                break
            smallest = min(smallest, gap)
            greedy.append(int(row.argmax()))
            if greedy[-1] == 2:
                break
            logits = model(mx.array([greedy[-1:]]), cache=cache)[0, -1]
        answer = tokenizer.decode(greedy, skip_special_tokens=False)
        print(question, "->", repr(answer), "smallest gap", smallest)
        cases.append(dict(question=question, prompt=prompt, greedy=greedy, text=answer,
                          smallest_gap=round(smallest, 4)))
    write_json(out, cases)


def convert(path, folder):
    folder.mkdir(parents=True, exist_ok=True)
    model, config, reader = from_gguf(path)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    write_json(folder / "config.json", config)
    tokenizer_of(reader).save(str(folder / "tokenizer.json"))
    tokens = field(reader, "tokenizer.ggml.tokens")
    special = lambda which: tokens[field(reader, f"tokenizer.ggml.{which}_token_id")]
    write_json(folder / "tokenizer_config.json", dict(
        tokenizer_class="PreTrainedTokenizerFast",
        chat_template=field(reader, "tokenizer.chat_template"),
        bos_token=special("bos"),
        eos_token=special("eos"),
    ))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, dest="command")
    commands.add_parser("tiny").add_argument("out", type=Path)
    for name in ["default", "convert"]:
        command = commands.add_parser(name)
        command.add_argument("model", type=Path)
        command.add_argument("out", type=Path)
    arguments = parser.parse_args()
    if arguments.command == "tiny":
        tiny(arguments.out)
    else:
        dict(default=default, convert=convert)[arguments.command](arguments.model, arguments.out)


if __name__ == "__main__":
    main()
