#!/usr/bin/env python3
"""Logits of a checkpoint as the DeepseekV4ForCausalLM of `transformers` computes them, in float64.

A second implementation, by other people, of the *exact* numerics of spec/numerics.md. The packages
it needs, pinned, are in requirements.txt beside this file; nothing is fetched from a model hub.

    transformers_logits.py MODEL_DIR IDS -o OUT.h5          writes token_ids and logits [S, vocab]
    transformers_logits.py MODEL_DIR IDS --compare OUT.h5   compares with the logits in that file

MODEL_DIR is in the released layout: config.json and model.safetensors, or its shards. IDS is an
HDF5 file with a dataset token_ids, or a text file of ids between white space. Exit code: 0 good,
1 the logits differ by more than --tol, 2 cannot run.
"""

import argparse
import json
import math
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"

try:
    import h5py
    import numpy as np
    import torch
    import transformers
    from safetensors import safe_open
    from torch.overrides import TorchFunctionMode
    from transformers import DeepseekV4Config, DeepseekV4ForCausalLM
except ImportError as error:
    print(f"transformers_logits: {error}: install requirements.txt", file=sys.stderr)
    sys.exit(2)


class CannotRun(Exception):
    pass


# ---- the checkpoint ------------------------------------------------------------------------------

E2M1 = torch.tensor([0, .5, 1, 1.5, 2, 3, 4, 6], dtype=torch.float64)
E2M1 = torch.cat([E2M1, -E2M1])


def unpack_fp4(packed):
    """[out, in/2] bytes of two E2M1 codes, low nibble first -> [out, in]."""
    codes = packed.view(torch.uint8).to(torch.int64)
    return E2M1[torch.stack([codes & 15, codes >> 4], dim=-1)].flatten(-2)


def dequantise(name, weight, scale):
    """An FP8 matrix, one scale per 128x128 block, or an FP4 matrix, one per 32 of a row."""
    if weight.dtype == torch.int8:
        rows, columns, values = 1, 32, unpack_fp4(weight)
    elif weight.dtype == torch.float8_e4m3fn:
        rows, columns, values = 128, 128, weight.to(torch.float64)
    else:
        raise CannotRun(f"{name}: {weight.dtype} with a scale, expected FP8 or FP4")
    out, width = values.shape
    blocks = (math.ceil(out / rows), math.ceil(width / columns))
    if tuple(scale.shape) != blocks:
        raise CannotRun(f"{name}: scale of shape {tuple(scale.shape)}, expected {blocks}")
    scale = scale.to(torch.float64)
    scale = scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
    return values * scale[:out, :width]


def canonical(name):
    """The released name of a tensor; others write a leading "model." or "weight_scale_inv"."""
    return name.removeprefix("model.").replace(".weight_scale_inv", ".scale")


def read_weights(directory):
    """Every tensor by its released name, floating ones in float64. Without MTP's: transformers has
    no MTP."""
    index = directory / "model.safetensors.index.json"
    files = ["model.safetensors"]
    if index.exists():
        files = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    stored = {}
    for file in files:
        with safe_open(directory / file, framework="pt") as tensors:
            for name in tensors.keys():
                if not canonical(name).startswith("mtp."):
                    stored[canonical(name)] = tensors.get_tensor(name)
    weights = {}
    for name, tensor in stored.items():
        if name.endswith(".scale"):
            continue
        scale = stored.get(name.removesuffix(".weight") + ".scale")
        if scale is not None:
            weights[name] = dequantise(name, tensor, scale)
        elif tensor.dtype in (torch.float32, torch.bfloat16, torch.float16):
            weights[name] = tensor.to(torch.float64)
        elif name.endswith(".tid2eid"):
            weights[name] = tensor.to(torch.int64)
        else:
            raise CannotRun(f"{name}: {tensor.dtype} without a scale")
    return weights


# ---- the model -----------------------------------------------------------------------------------


def read_config(directory):
    """config.json as transformers is to read it: changed only where transformers would take it
    otherwise than spec/config.md does."""
    config = json.loads((directory / "config.json").read_text())
    # The weights arrive dequantised.
    config.pop("quantization_config", None)
    # transformers refuses a number written without a point here.
    for key in ("routed_scaling_factor", "swiglu_limit", "hc_eps", "rms_norm_eps"):
        config[key] = float(config[key])
    # 0 means no clamp; transformers would clamp everything to 0.
    if config["swiglu_limit"] <= 0:
        config["swiglu_limit"] = math.inf
    # transformers always divides by the sum of the chosen scores.
    if not config.get("norm_topk_prob", True):
        raise CannotRun("norm_topk_prob: expected true, which transformers always takes it for")
    # No original length means no scaling; transformers would take its logarithm.
    scaling = config.get("rope_scaling")
    if scaling and not scaling.get("original_max_position_embeddings"):
        config["rope_scaling"] = None
    # transformers takes int(head_dim * (qk_rope_head_dim / head_dim)): 29 where 30 of 44 is meant.
    config["partial_rotary_factor"] = (config["qk_rope_head_dim"] + 0.5) / config["head_dim"]
    # Of compress_ratios transformers knows 0, 4 and 128; of its own keys below, any one HCA ratio.
    ratios = config["compress_ratios"][: config["num_hidden_layers"]]
    hca = {ratio for ratio in ratios if ratio not in (0, 4)}
    if len(hca) > 1:
        raise CannotRun(f"compress_ratios {sorted(hca)}: transformers has one HCA ratio")
    kinds = {0: "sliding_attention", 4: "compressed_sparse_attention"}
    config["layer_types"] = [kinds.get(ratio, "heavily_compressed_attention") for ratio in ratios]
    config["compress_rates"] = {"compressed_sparse_attention": 4,
                                "heavily_compressed_attention": hca.pop() if hca else 128}
    del config["compress_ratios"]
    return DeepseekV4Config.from_dict(config)


NARROW = (torch.float32, torch.bfloat16, torch.float16)


class Float64(TorchFunctionMode):
    """Turns every request for float32 into one for float64.

    transformers computes RMSNorm, the rotary angles and rotation, the pooling softmax, the index
    scores and all of mHC in float32 whatever the model's dtype: by `.float()`,
    `.to(torch.float32)` or `dtype=torch.float32`. That is a bf16 model's safeguard, and here the
    only loss of precision: about 1e-6 of the largest logit.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        args = [torch.float64 if arg is torch.float32 else arg for arg in args]
        kwargs = {key: torch.float64 if arg is torch.float32 else arg
                  for key, arg in (kwargs or {}).items()}
        result = function(*args, **kwargs)
        if isinstance(result, torch.Tensor) and result.dtype in NARROW:
            raise CannotRun(f"{function} left float64")
        return result


def forward(directory, ids):
    """logits [S, vocab] of one pass from position 0."""
    config = read_config(directory)
    if not 0 <= min(ids) <= max(ids) < config.vocab_size:
        raise CannotRun(f"token ids from {min(ids)} to {max(ids)}, vocab_size {config.vocab_size}")
    weights = read_weights(directory)
    torch.set_default_dtype(torch.float64)
    with Float64(), torch.no_grad():
        # transformers' own mapping of the released names, so that it is a part of the comparison.
        model, loading = DeepseekV4ForCausalLM.from_pretrained(
            None, config=config, state_dict=weights, dtype=torch.float64,
            attn_implementation="eager", experts_implementation="eager",
            output_loading_info=True, ignore_mismatched_sizes=True)
        for problem, what in loading.items():
            if what:
                raise CannotRun(f"{problem}: {sorted(what)}")
        return model(torch.tensor([ids]), use_cache=False).logits[0].numpy()


# ---- files and the comparison --------------------------------------------------------------------


def read_ids(path):
    if h5py.is_hdf5(path):
        with h5py.File(path) as file:
            ids = file["token_ids"][()].tolist()
    else:
        ids = [int(word) for word in path.read_text().split()]
    if not ids:
        raise CannotRun(f"{path}: no token ids")
    return ids


def write(path, ids, logits):
    part = path.with_name(path.name + ".part")
    with h5py.File(part, "w") as file:
        file["token_ids"] = np.array(ids, dtype=np.int64)
        file["logits"] = logits
    part.replace(path)


def agrees(path, ids, logits, tolerance):
    with h5py.File(path) as file:
        if file["token_ids"][()].tolist() != ids:
            raise CannotRun(f"{path}: other token_ids")
        other = file["logits"][()]
    if other.shape != logits.shape:
        raise CannotRun(f"{path}: logits of shape {other.shape}, expected {logits.shape}")
    error = np.abs(other - logits).max() / np.abs(logits).max()
    good = error <= tolerance  # false for NaN
    print(f"{path}: max error {error:.3g} of the largest logit, tolerance {tolerance:g}: "
          f"{'agrees' if good else 'DIFFERS'}")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model_dir", type=Path)
    parser.add_argument("ids", type=Path, help="HDF5 with token_ids, or text")
    parser.add_argument("-o", "--output", type=Path, metavar="OUT.h5")
    parser.add_argument("--compare", type=Path, metavar="OTHER.h5")
    parser.add_argument("--tol", type=float, default=1e-4, help="default: %(default)s")
    options = parser.parse_args()
    if not options.output and not options.compare:
        parser.error("nothing to do: give -o or --compare")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        ids = read_ids(options.ids)
        logits = forward(options.model_dir, ids)
        if options.output:
            write(options.output, ids, logits)
        if options.compare and not agrees(options.compare, ids, logits, options.tol):
            return 1
    except CannotRun as error:
        print(f"transformers_logits: {error}", file=sys.stderr)
        return 2
    except Exception as error:  # whatever the libraries raise, as one line
        print(f"transformers_logits: {type(error).__name__}: {' '.join(str(error).split())}",
              file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
