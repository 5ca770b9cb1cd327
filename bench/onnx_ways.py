"""ONNX Runtime and OpenVINO, where they are installed: a model of one attention operator, its inputs and outputs bound.

ONNX's Attention (opset 23) and OpenVINO's ScaledDotProductAttention; both read masks and biases as matrices.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import ml_dtypes
import numpy as np
import torch

from bench.side_by_side import Ways
from bench.workloads import Inputs, Workload
from maskattn.masks import Causal

_MOST_SCORES = 300_000_000  # ONNX Runtime keeps them all: more than a gigabyte


def onnxruntime_ways(w: Workload, inputs: Inputs) -> Ways:
    scores = w.batch * w.q_heads * w.q_len * w.kv_len
    if find_spec("onnxruntime") is None or find_spec("onnx") is None or scores > _MOST_SCORES:
        return {}
    if inputs.q.dtype == ml_dtypes.bfloat16:  # it has no kernels for it
        return {}
    import onnx
    import onnxruntime
    from onnx import helper

    arrays = {"q": inputs.q, "k": inputs.k, "v": inputs.v, **_matrix(w, inputs)}
    out = np.empty_like(inputs.q)

    def described(name: str, array: Any) -> Any:
        return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)

    node = helper.make_node("Attention", list(arrays), ["out"], is_causal=int(w.mask == Causal()))
    graph = helper.make_graph([node], "attention", [described(*x) for x in arrays.items()], [described("out", out)])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10)
    onnx.checker.check_model(model)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = torch.get_num_threads(), 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    binding = session.io_binding()
    for name, array in arrays.items():
        binding.bind_cpu_input(name, array)
    result = onnxruntime.OrtValue.ortvalue_from_numpy(out)
    binding.bind_ortvalue_output("out", result)

    def run() -> Any:
        session.run_with_iobinding(binding)
        return result

    return {"onnxruntime: Attention": run}


def openvino_ways(w: Workload, inputs: Inputs) -> Ways:
    if find_spec("openvino") is None:
        return {}
    import openvino
    from openvino import opset13 as ops

    bfloat16 = inputs.q.dtype == ml_dtypes.bfloat16
    group = w.q_heads // w.kv_heads
    q = inputs.q.reshape(w.batch, w.kv_heads, group, w.head_dim) if w.is_decode else inputs.q  # groups folded into rows
    arrays = {"q": q, "k": inputs.k, "v": inputs.v, **_matrix(w, inputs)}
    tensors = {name: _openvino_tensor(array) for name, array in arrays.items()}
    parameters = {name: ops.parameter(list(t.shape), t.element_type, name=name) for name, t in tensors.items()}
    operands = dict(parameters)
    if group > 1 and not w.is_decode:
        operands |= {name: _repeated(ops, operands[name], w) for name in "kv"}
    attention = ops.scaled_dot_product_attention(*operands.values(), causal=w.mask == Causal())
    options = {
        "INFERENCE_PRECISION_HINT": "bf16" if bfloat16 else "f16" if inputs.q.dtype == np.float16 else "f32",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "NUM_STREAMS": 1,
        "ENABLE_CPU_PINNING": False,
    }
    model = openvino.Model([attention], list(parameters.values()))
    request = openvino.Core().compile_model(model, "CPU", options).create_infer_request()
    for index, tensor in enumerate(tensors.values()):
        request.set_input_tensor(index, tensor)

    out = request.get_output_tensor(0)

    def run(keep: Any = arrays) -> Any:  # tensors are views, which do not keep what they view
        request.infer()
        return out.data.view(np.uint16).view(ml_dtypes.bfloat16) if bfloat16 else out.data

    return {"openvino: SDPA": run}


def _matrix(w: Workload, inputs: Inputs) -> dict[str, Any]:
    """Mask (True = attend) or bias, of shape (batch or 1, heads or 1, q_len, kv_len); nothing for causal masks."""
    if w.kv_lengths is not None:
        seen = np.arange(w.kv_len) < np.array(w.kv_lengths)[:, None, None, None]
        return {"mask": np.broadcast_to(seen, (w.batch, 1, w.q_len, w.kv_len)).copy()}
    if w.bias is not None:
        values = w.bias.values(np.arange(w.q_len)[:, None], np.arange(w.kv_len)[None, :])
        return {"mask": np.ascontiguousarray(values[None].astype(inputs.q.dtype))}
    return {} if w.mask is None or w.mask == Causal() else {"mask": np.ascontiguousarray(w.dense[None, None])}


def _openvino_tensor(array: Any) -> Any:
    import openvino

    if array.dtype == ml_dtypes.bfloat16:
        return openvino.Tensor(array.view(np.uint16), array.shape, openvino.Type.bf16)
    return openvino.Tensor(array, shared_memory=True)


def _repeated(ops: Any, x: Any, w: Workload) -> Any:
    """Keys or values of grouped heads, once for each query head, by the pattern that OpenVINO's fusion looks for."""
    group = w.q_heads // w.kv_heads
    wide = ops.broadcast(ops.unsqueeze(x, [2]), [w.batch, w.kv_heads, group, w.kv_len, w.head_dim])
    return ops.reshape(wide, [w.batch, w.q_heads, w.kv_len, w.head_dim], special_zero=False)
