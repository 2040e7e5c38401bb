# SPDX-License-Identifier: Apache-2.0
"""How the source variants store their linears: FP8 with one scale, FP8 with a scale per block of 128 x 128, MXFP4 experts.

Each function takes a checkpoint in bf16 and returns it as stored, and as bf16 again from what was stored: value times scale, in
float32, rounded once to bf16 (MXFP4's values are exact in bf16).
"""
import torch

FP8_MAX = 448.0
E2M1 = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])


def is_linear(name):
    return name.endswith("_proj.weight") or name.endswith("_proj_with_mqa.weight")


def fp8(tensors):
    stored, dense = dict(tensors), dict(tensors)
    for name, w in tensors.items():
        if is_linear(name):
            # checkpoints of the hub have scales of shape [] or of shape [1]
            scale = (w.float().abs().max() / FP8_MAX).reshape([1] if ".layers.1." in name else [])
            q = (w.float() / scale).to(torch.float8_e4m3fn)
            stored[name], stored[name + "_scale"] = q, scale
            dense[name] = (q.float() * scale).to(torch.bfloat16)
    return stored, dense


def fp8_block(tensors, block=128):
    stored, dense = dict(tensors), dict(tensors)
    for name, w in tensors.items():
        if is_linear(name):
            rows, columns = (-(-n // block) for n in w.shape)
            scale = torch.empty(rows, columns)
            for i in range(rows):
                for j in range(columns):
                    scale[i, j] = w[i * block:(i + 1) * block, j * block:(j + 1) * block].float().abs().max() / FP8_MAX
            spread = scale.repeat_interleave(block, 0)[:w.shape[0]].repeat_interleave(block, 1)[:, :w.shape[1]]
            q = (w.float() / spread).to(torch.float8_e4m3fn)
            stored[name], stored[name + "_scale_inv"] = q, scale
            dense[name] = (q.float() * spread).to(torch.bfloat16)
    return stored, dense


def mxfp4(tensors):
    stored, dense = dict(tensors), dict(tensors)
    for name, w in tensors.items():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            x = w.float().transpose(1, 2).unflatten(-1, (-1, 32))          # [expert, out, block, 32]
            exponent = torch.floor(torch.log2(x.abs().amax(-1))) - 2        # the largest value lies in [4, 8)
            y = x / torch.exp2(exponent)[..., None]
            code = (y.abs()[..., None] - E2M1).abs().argmin(-1)
            nibble = (code + 8 * (y < 0)).to(torch.uint8)
            del stored[name]
            stored[name + "_blocks"] = nibble[..., 0::2] | nibble[..., 1::2] << 4
            stored[name + "_scales"] = (exponent + 127).to(torch.uint8)
            value = E2M1[code] * torch.where(y < 0, -1.0, 1.0) * torch.exp2(exponent)[..., None]
            dense[name] = value.flatten(-2).transpose(1, 2).to(torch.bfloat16).contiguous()
    return stored, dense


STORE = {"fp8": fp8, "fp8_block": fp8_block, "mxfp4": mxfp4}
