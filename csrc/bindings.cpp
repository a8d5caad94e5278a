// The raw kernels as torch.ops._sparse_ops_C: one line per kernel. Arguments are checked buffers; see sparse_ops/ops.
#include "common.h"
#include "cpu/apply_masks.h"
#include "cpu/csr_pattern.h"
#include "cpu/csr_sddmm.h"
#include "cpu/csr_spmm.h"
#include "cpu/hypersparse.h"
#include "cpu/kth_magnitude.h"
#include "cpu/magnitude_mask.h"
#include "cpu/soft_threshold.h"
#include "cpu/sparse_conv2d.h"
#include "cpu/sweep.h"
#include "cpu/sweep_finish.h"
#include "cpu/to_layout.h"

STABLE_TORCH_LIBRARY(_sparse_ops_C, m) {
  m.def("isa() -> str");
  m.def("set_isa(str name) -> ()");
  m.def("apply_masks_(Tensor(a!)[] tensors, Tensor[] masks) -> ()");
  m.def("csr_pattern_offsets(Tensor dense, Tensor(a!) row_offsets) -> int");
  m.def("csr_pattern_fill(Tensor dense, Tensor row_offsets, Tensor(a!) columns, Tensor(b!) t_row_offsets, "
        "Tensor(c!) t_columns, Tensor(d!) t_permutation, Tensor(e!)? values) -> ()");
  m.def("csr_pattern_permute(Tensor values, Tensor t_permutation, Tensor(a!) out) -> ()");
  m.def("csr_sddmm(Tensor dy, Tensor b, Tensor row_offsets, Tensor columns, bool dy_transposed, bool b_transposed, "
        "Tensor(a!) dvalues) -> ()");
  m.def("csr_spmm(Tensor values, Tensor row_offsets, Tensor columns, Tensor b, Tensor? bias, bool transposed, "
        "Tensor(a!) y, Tensor? addend=None, str activation=\"none\") -> ()");
  m.def("csr_spmm_plain(Tensor values, Tensor row_offsets, Tensor columns, Tensor b, Tensor? bias, bool transposed, "
        "int K, Tensor? addend, str activation, int most_bytes) -> Tensor?");
  m.def("hypersparse_penalty_backward(Tensor[] weights, Tensor coefficients, Tensor(a!)[] grads) -> ()");
  m.def("hypersparse_sums(Tensor[] weights, Tensor scale, Tensor(a!) out) -> ()");
  m.def("kth_magnitude(Tensor[] tensors, int k, Tensor(a!) out) -> ()");
  m.def("magnitude_mask(Tensor[] tensors, ScalarType promoted, int zeros, bool prune_ties, Tensor(a!)[] masks) -> int");
  m.def(
      "regularized_sgd_(Tensor(a!)[] weights, Tensor[] grads, Tensor(b!)[] momenta, Tensor[] masks, Tensor[] groups, "
      "int[] scopes, Tensor coefficients, Tensor brackets, Tensor(y!) statistics, Tensor(z!) candidates, str penalty, "
      "float lr, float momentum, float dampening, float weight_decay, bool nesterov, bool maximize, bool first_step, "
      "Tensor? lr_tensor, Tensor? grad_scale, Tensor? found_inf) -> bool");
  m.def(
      "bound_sgd_(int bound, Tensor[] grads, Tensor coefficients, Tensor brackets, Tensor(y!) statistics, "
      "Tensor(z!) candidates, str penalty, float lr, float momentum, float dampening, float weight_decay, "
      "bool nesterov, bool maximize, Tensor? grad_scale, Tensor? found_inf) -> bool");
  m.def(
      "bound_adamw_(int bound, Tensor[] grads, Tensor coefficients, Tensor brackets, Tensor(y!) statistics, "
      "Tensor(z!) candidates, str penalty, float lr, float beta1, float beta2, float eps, float weight_decay, "
      "bool maximize, Tensor? grad_scale, Tensor? found_inf) -> bool");
  m.def("sweep_bind(Tensor[] weights, Tensor[] states, Tensor[] steps, Tensor[] masks, Tensor[] groups, int[] scopes) "
        "-> int");
  m.def("sweep_release(int bound) -> ()");
  m.def(
      "regularized_adamw_(Tensor(a!)[] weights, Tensor[] grads, Tensor(b!)[] exp_avgs, Tensor(c!)[] exp_avg_sqs, "
      "Tensor(d!)[] max_exp_avg_sqs, Tensor[] steps, Tensor[] masks, Tensor[] groups, int[] scopes, "
      "Tensor coefficients, Tensor brackets, Tensor(y!) statistics, Tensor(z!) candidates, str penalty, float lr, "
      "float beta1, float beta2, float eps, float weight_decay, bool maximize, Tensor? lr_tensor, "
      "Tensor? grad_scale, Tensor? found_inf) -> bool");
  m.def(
      "sweep_observe_(Tensor(a!)[] weights, Tensor[] masks, int[] scopes, Tensor coefficients, Tensor brackets, "
      "Tensor(y!) statistics, Tensor(z!) candidates) -> bool");
  m.def(
      "sweep_finish_(Tensor[] weights, int[] scopes, int[] ranks, float tolerance, bool exact, "
      "Tensor(a!) coefficients, Tensor(b!) brackets, Tensor(c!) statistics, Tensor candidates, Tensor(d!) report) "
      "-> bool");
  m.def(
      "add_penalty_grad_(Tensor(a!)[] grads, Tensor[] weights, Tensor[] groups, int[] scopes, Tensor coefficients, "
      "str penalty, Tensor? grad_scale) -> ()");
  m.def("soft_threshold(Tensor weight, Tensor thresholds, bool relative, Tensor(a!) y, Tensor(b!) levels) -> ()");
  m.def(
      "soft_threshold_backward(Tensor grad, Tensor weight, Tensor levels, bool relative, bool elu, "
      "Tensor(a!) grad_weight, Tensor(b!) sums) -> ()");
  m.def(
      "sparse_conv2d(Tensor x, Tensor values, Tensor row_offsets, Tensor columns, Tensor? bias, Tensor(a!) y, "
      "int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, Tensor? addend, str activation, "
      "int layout) -> ()");
  m.def(
      "sparse_conv2d_input_grad(Tensor dy, Tensor values, Tensor t_row_offsets, Tensor t_columns, "
      "Tensor t_permutation, Tensor(a!) dx, int[] kernel_size, int[] stride, int[] padding, int[] dilation, "
      "int groups, int layout) -> ()");
  m.def(
      "sparse_conv2d_plain(Tensor x, Tensor values, Tensor row_offsets, Tensor columns, Tensor? bias, int width, "
      "int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, Tensor? addend, str activation, "
      "int most_bytes) -> Tensor?");
  m.def(
      "sparse_conv2d_weight_grad(Tensor x, Tensor dy, Tensor row_offsets, Tensor columns, Tensor(a!) dvalues, "
      "int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, int x_layout, "
      "int dy_layout) -> ()");
  m.def("to_layout(Tensor x, Tensor(a!) y) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(_sparse_ops_C, CompositeExplicitAutograd, m) {
  m.impl("csr_spmm_plain", TORCH_BOX(&sparse_ops::csr_spmm_plain));  // it looks at the devices itself
  m.impl("sparse_conv2d_plain", TORCH_BOX(&sparse_ops::sparse_conv2d_plain));  // as csr_spmm_plain
  m.impl("isa", TORCH_BOX(&sparse_ops::isa_name));
  m.impl("set_isa", TORCH_BOX(&sparse_ops::set_isa));
  m.impl("bound_adamw_", TORCH_BOX(&sparse_ops::bound_adamw_));  // as bound_sgd_
  m.impl("bound_sgd_", TORCH_BOX(&sparse_ops::bound_sgd_));  // it answers false to gradients of other devices
  m.impl("sweep_release", TORCH_BOX(&sparse_ops::sweep_release));
}

STABLE_TORCH_LIBRARY_IMPL(_sparse_ops_C, CPU, m) {
  m.impl("apply_masks_", TORCH_BOX(&sparse_ops::apply_masks_));
  m.impl("csr_pattern_fill", TORCH_BOX(&sparse_ops::csr_pattern_fill));
  m.impl("csr_pattern_offsets", TORCH_BOX(&sparse_ops::csr_pattern_offsets));
  m.impl("csr_pattern_permute", TORCH_BOX(&sparse_ops::csr_pattern_permute));
  m.impl("csr_sddmm", TORCH_BOX(&sparse_ops::csr_sddmm));
  m.impl("csr_spmm", TORCH_BOX(&sparse_ops::csr_spmm));
  m.impl("hypersparse_penalty_backward", TORCH_BOX(&sparse_ops::hypersparse_penalty_backward));
  m.impl("hypersparse_sums", TORCH_BOX(&sparse_ops::hypersparse_sums));
  m.impl("kth_magnitude", TORCH_BOX(&sparse_ops::kth_magnitude));
  m.impl("magnitude_mask", TORCH_BOX(&sparse_ops::magnitude_mask));
  m.impl("regularized_sgd_", TORCH_BOX(&sparse_ops::regularized_sgd_));
  m.impl("sweep_bind", TORCH_BOX(&sparse_ops::sweep_bind));
  m.impl("regularized_adamw_", TORCH_BOX(&sparse_ops::regularized_adamw_));
  m.impl("sweep_observe_", TORCH_BOX(&sparse_ops::sweep_observe_));
  m.impl("sweep_finish_", TORCH_BOX(&sparse_ops::sweep_finish_));
  m.impl("add_penalty_grad_", TORCH_BOX(&sparse_ops::add_penalty_grad_));
  m.impl("soft_threshold", TORCH_BOX(&sparse_ops::soft_threshold));
  m.impl("soft_threshold_backward", TORCH_BOX(&sparse_ops::soft_threshold_backward));
  m.impl("sparse_conv2d", TORCH_BOX(&sparse_ops::sparse_conv2d));
  m.impl("sparse_conv2d_input_grad", TORCH_BOX(&sparse_ops::sparse_conv2d_input_grad));
  m.impl("sparse_conv2d_weight_grad", TORCH_BOX(&sparse_ops::sparse_conv2d_weight_grad));
  m.impl("to_layout", TORCH_BOX(&sparse_ops::to_layout));
}
