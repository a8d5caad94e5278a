// The raw kernels as torch.ops._sparse_ops_C: one line per kernel. Arguments are checked buffers; see sparse_ops/ops.
#include "common.h"
#include "cpu/apply_masks.h"

STABLE_TORCH_LIBRARY(_sparse_ops_C, m) {
  m.def("isa() -> str");
  m.def("set_isa(str name) -> ()");
  m.def("apply_masks_(Tensor(a!)[] tensors, Tensor[] masks) -> ()");
}

STABLE_TORCH_LIBRARY_IMPL(_sparse_ops_C, CompositeExplicitAutograd, m) {
  m.impl("isa", TORCH_BOX(&sparse_ops::isa_name));
  m.impl("set_isa", TORCH_BOX(&sparse_ops::set_isa));
}

STABLE_TORCH_LIBRARY_IMPL(_sparse_ops_C, CPU, m) {
  m.impl("apply_masks_", TORCH_BOX(&sparse_ops::apply_masks_));
}
