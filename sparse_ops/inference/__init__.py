"""Whole networks for inference: fused, with layers dense or sparse and tensors laid out as measured."""

from sparse_ops.inference.exported import export, load_exported
from sparse_ops.inference.network import InferenceNetwork, InferenceReport
from sparse_ops.inference.optimize import optimize_for_inference

__all__ = ["InferenceNetwork", "InferenceReport", "export", "load_exported", "optimize_for_inference"]
