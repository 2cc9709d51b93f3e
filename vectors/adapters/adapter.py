"""What the adapters of Python packages share: float64, cases as configurations, weights and calls, and
the loop that answers all cases that a package can express."""

import json
import os
import platform
import sys
from pathlib import Path

import numpy as np
import torch
from torch.overrides import TorchFunctionMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from dsv4_vectors import Candidate, cases, matrix  # noqa: E402

torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "2")))
torch.set_default_dtype(torch.float64)


class Skip(Exception):
    """The package has no way to express this case."""


NARROW = (torch.float32, torch.bfloat16, torch.float16)


class Float64(TorchFunctionMode):
    """Turns every request for float32 into one for float64.

    The packages compute norms, rotations, softmaxes and mHC in float32 whatever the model's dtype, by
    `.float()`, `.to(torch.float32)` or `dtype=torch.float32`. That is a bf16 model's safeguard, and
    here the only loss of precision.
    """

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        args = [torch.float64 if arg is torch.float32 else arg for arg in args]
        kwargs = {key: torch.float64 if arg is torch.float32 else arg
                  for key, arg in (kwargs or {}).items()}
        result = function(*args, **kwargs)
        if isinstance(result, torch.Tensor) and result.dtype in NARROW:
            raise TypeError(f"{function} left float64")
        return result


# ---- cases ---------------------------------------------------------------------------------------


def tensor(array):
    """float64, or int64 for integers."""
    array = np.asarray(array)
    kind = np.int64 if np.issubdtype(array.dtype, np.integer) else np.float64
    return torch.from_numpy(np.array(array, dtype=kind))


def values(case, slot):
    """An input by its name without ".weight"; matrices of codes dequantised."""
    if f"{slot}.weight" in case.inputs:
        return tensor(matrix(case, slot))
    return tensor(case.inputs[slot])


def config_of(case, **sizes):
    """The config.json of a model that has this case in layer 0: the case's parameters, the sizes given,
    and small numbers for the rest."""
    config = {
        "vocab_size": 16, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1, "head_dim": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4,
        "o_groups": 2, "o_lora_rank": 4, "sliding_window": 8, "index_n_heads": 2,
        "index_head_dim": 8, "index_topk": 4, "moe_intermediate_size": 8, "n_routed_experts": 2,
        "n_shared_experts": 1, "num_experts_per_tok": 1, "scoring_func": "sqrtsoftplus",
        "norm_topk_prob": True, "routed_scaling_factor": 1.5, "swiglu_limit": 10.0, "hc_mult": 4,
        "hc_sinkhorn_iters": 20, "hc_eps": 1e-6, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "compress_rope_theta": 160000.0, "num_nextn_predict_layers": 0, "num_hash_layers": 0,
        "max_position_embeddings": 1048576, "bos_token_id": 0, "eos_token_id": 1,
    }
    params = case.params
    for key, otherwise in list(config.items()):
        if key in params:
            config[key] = type(otherwise)(params[key])
    config.update(sizes)
    # A case's sizes and parameters fix the rest, which has to go with them.
    config["num_attention_heads"] = max(config["num_attention_heads"], config["o_groups"])
    config["num_experts_per_tok"] = min(config["num_experts_per_tok"], config["n_routed_experts"])
    config["num_hash_layers"] = int(params.get("hash", 0))
    ratio = int(params.get("ratio", 128 if params.get("compressed") else 0))
    config["compress_ratios"] = [ratio]
    if params.get("factor") and params.get("original_max_position_embeddings"):
        config["rope_scaling"] = {
            "type": "yarn", "factor": params["factor"],
            "original_max_position_embeddings": int(params["original_max_position_embeddings"]),
            "beta_fast": params["beta_fast"], "beta_slow": params["beta_slow"]}
    return config


def layer_sizes(case, prefix=""):
    """The sizes of a layer that only the shapes of its inputs tell."""
    def rows(slot):
        return values(case, prefix + slot).shape[0]

    sizes = {}
    if f"{prefix}attn_sink" in case.inputs:
        H, g = int(case.params["num_attention_heads"]), int(case.params["o_groups"])
        sizes.update(head_dim=rows("wkv"), q_lora_rank=rows("wq_a"), o_lora_rank=rows("wo_a") // g,
                     hidden_size=rows("wo_b"), num_attention_heads=H)
        if f"{prefix}indexer.compressor.norm.weight" in case.inputs:
            sizes["index_head_dim"] = rows("indexer.compressor.norm")
    return sizes


def moe_sizes(case):
    """Those of a mixture of experts."""
    I, D = values(case, "ffn.shared_experts.w1").shape
    sizes = {"hidden_size": D, "moe_intermediate_size": I,
             "n_routed_experts": case.inputs["ffn.gate.weight"].shape[0]}
    if "ffn.gate.tid2eid" in case.inputs:
        sizes["vocab_size"] = case.inputs["ffn.gate.tid2eid"].shape[0]
    return sizes


def fill(module, weights):
    """Sets all parameters of a module, and those buffers that are named. `weights` maps their names to
    tensors, which are reshaped where the package stores another shape."""
    stored = dict(module.named_parameters()) | dict(module.named_buffers())
    missing = dict(module.named_parameters()).keys() - weights.keys()
    if missing or weights.keys() - stored.keys():
        raise KeyError(f"{type(module).__name__}: no values for {sorted(missing)}, no use for "
                       f"{sorted(weights.keys() - stored.keys())}")
    for name, value in weights.items():
        stored[name].data = value.reshape(stored[name].shape).to(stored[name].dtype).clone()
    return module.eval()


def hadamard(x):
    """Walsh-Hadamard over the last dimension, times its size^(-1/2). The packages leave it out: it is
    orthogonal and changes no score. Operators that show one side of a product need it."""
    width = x.shape[-1]
    h = torch.ones(1, 1)
    while h.shape[0] < width:
        h = torch.cat([torch.cat([h, h], 1), torch.cat([h, -h], 1)])
    return x @ h * width ** -0.5


class Call:
    """One call of an engine: `rows` [B, S] of the case, their `positions` [B, S] and, where there is
    padding, `mask` [B, all rows of the batch so far]; `real` [B, S] are the rows that are tokens."""

    def __init__(self, rows, sequence, before, padded, count_padding):
        self.rows = torch.from_numpy(rows)
        self.real = torch.from_numpy(sequence[rows] >= 0)
        seen = self.real if before is None else torch.cat([before, self.real], 1)
        self.seen = seen
        self.mask = seen.long() if padded else None
        # As generate() numbers the tokens of a batch, unless padding counts.
        counted = torch.ones_like(seen) if count_padding else seen
        self.positions = (counted.long().cumsum(1) - 1).clamp(min=0)[:, -rows.shape[1]:]


MASK_ONLY = sys.argv[4:] == ["--mask-only"]


def runs(case):
    """The calls of a case: lists of them, each for a state of its own. A batch is presented as such;
    other sequences go one by one, since neither package has a state of several sequences in one row."""
    sequence = np.asarray(case.inputs["sequence"])
    ends = np.cumsum(np.asarray(case.inputs["calls"]))
    spans = [np.arange(end - length, end) for end, length in zip(ends, case.inputs["calls"])]
    batch = int(case.params.get("batch", 0))
    if batch:
        yield _calls([rows.reshape(batch, -1) for rows in spans], sequence)
        return
    for s in range(sequence.max() + 1):
        own = [rows[sequence[rows] == s] for rows in spans]
        yield _calls([rows[None] for rows in own if len(rows)], sequence)


def _calls(rectangles, sequence):
    padded = any((sequence[rows] < 0).any() for rows in rectangles)
    calls = []
    for rows in rectangles:
        calls.append(Call(rows, sequence, calls[-1].seen if calls else None, padded,
                          MASK_ONLY))
    return calls


def scatter(target, call, result):
    """result [B, S, ...] of a call into its rows of target [N, ...]."""
    target[call.rows.flatten()] = result.flatten(0, 1)


def empty(case, slot):
    return torch.full(case.outputs[slot].shape, float("nan"))


# ---- the loop ------------------------------------------------------------------------------------


def answer_all(package, version, operators, absent, remarks, unshown):
    """Answers every exact case; arguments: VECTORS OUT.h5 NOTES.json [--mask-only].

    `operators` maps operators to functions of a case that return its outputs; `absent` maps those that
    the package does not offer to the reason; `unshown` are mistakes seen in its source that no vector
    shows. A case may raise Skip. An exception out of the package is an answer too: NaN, so that the case
    fails. With --mask-only only batches with padding are answered, and their positions count it."""
    vectors, out, notes = sys.argv[1:4]
    skipped, raised = [], []
    with Candidate(out) as candidate, torch.no_grad(), Float64():
        for case in cases(vectors, numerics="exact"):
            if case.operator not in operators:
                absent.setdefault(case.operator, "not looked for")
                continue
            if MASK_ONLY and "padded" not in case.flags:
                continue
            try:
                outputs = operators[case.operator](case)
            except Skip as why:
                skipped.append({"operator": case.operator, "case": case.name, "reason": str(why)})
                print(f"{package}: skipped {case.operator}/{case.name}: {why}")
                continue
            except Exception as error:
                text = f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]
                raised.append({"operator": case.operator, "case": case.name, "error": text})
                print(f"{package}: {case.operator}/{case.name} raised {text}")
                outputs = {slot: np.full_like(array, -1 if array.dtype.kind == "i" else np.nan)
                           for slot, array in case.outputs.items()}
            if MASK_ONLY:  # rotated by positions that are others
                outputs = {slot: array for slot, array in outputs.items() if slot not in ("q", "kv")}
            candidate.write(case, **{slot: np.asarray(array) for slot, array in outputs.items()})
    Path(notes).write_text(json.dumps({
        "package": package, "version": version, "python": platform.python_version(),
        "torch": torch.__version__.split("+")[0], "precision": "float64", "remarks": remarks,
        "unshown": unshown, "absent": absent, "skipped": skipped, "raised": raised}, indent=1) + "\n")
