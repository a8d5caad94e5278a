// Blocks of target pixels and the taps that they see.
#include "sparse_conv2d_taps.h"

namespace sparse_ops {

static std::vector<ConvClass> classes_of(const ConvAxis& axis) {
  auto classes = conv_classes(axis, axis.target, true);
  for (ConvClass& c : classes)
    for (size_t i = 0; i < c.target.size(); ++i) c.base[i] = static_cast<int32_t>(axis.base(c.target[i]));
  return classes;
}

ConvTapBlocks conv_tap_blocks(const ConvAxis& h, const ConvAxis& w, int most) {
  const auto rows = classes_of(h), cols = classes_of(w);
  ConvTapBlocks result;
  result.blocks = conv_blocks(rows, cols, w.source, w.target, most);
  result.first.push_back(0);
  for (const ConvClass& r : rows)
    for (const ConvClass& c : cols) {
      for (int64_t tap = 0; tap < h.kernel * w.kernel; ++tap) {
        if (r.offset[tap / w.kernel] < 0 || c.offset[tap % w.kernel] < 0) continue;
        const bool first = static_cast<int32_t>(result.segments.size()) == result.first.back();
        if (first || result.segments.back().end != tap) result.segments.push_back({static_cast<int32_t>(tap), 0});
        result.segments.back().end = static_cast<int32_t>(tap + 1);
      }
      result.first.push_back(static_cast<int32_t>(result.segments.size()));
    }
  return result;
}

}  // namespace sparse_ops
