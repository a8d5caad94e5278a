// Convolution of images with a sparse weight, and its input gradient: both are sums over lists of (source line, value).
//
// Images in users' layouts go through planes of pixels (sparse_conv2d_pixels.h) or, where these do not suit, through
// bands: sixteen bands of rows (whole images where they are small) lie side by side in the lanes of one slab, so that
// every multiply-add reads one aligned line whatever the stride, dilation or image width, and no lane computes junk
// columns.
#include "sparse_conv2d.h"

#include <cstdint>
#include <cstring>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "scratch.h"
#include "sparse_conv2d_batch_last.h"
#include "sparse_conv2d_lanes.h"
#include "sparse_conv2d_pixels.h"
#include "sparse_conv2d_weight.h"

#define SPARSE_OPS_BODY "cpu/sparse_conv2d_body.h"
#include "../foreach_isa.h"

namespace sparse_ops {

namespace {

// Blocks of 32 MiB and more come from the system and go back to it (glibc keeps smaller ones), so that each call pays a
// page fault for every 4 KiB of output: 17 of 21 ms for 51 MB. Huge pages, where the system gives them to who asks, are
// 512 times fewer; for 3 MB, which are kept, asking made calls about 1.4 times as long.
void ask_for_huge_pages([[maybe_unused]] void* data, [[maybe_unused]] int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kHuge = uintptr_t{2} << 20;
  if (bytes < int64_t{32} << 20) return;
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kHuge - 1) / kHuge * kHuge;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) / kHuge * kHuge;
  if (begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);  // a refusal changes nothing
#endif
}

template <typename T>
void convolve(const ConvImages& source, const ConvImages& target, const ConvWeight<T>& weight, const T* bias,
              const ConvImages* addend, ConvActivation activation, const ConvAxis& h, const ConvAxis& w) {
  using A = Accumulator<T>;
  constexpr int64_t kLanes = 64 / sizeof(A);
  const int64_t rows = target.channels;
  const int64_t elements = target.images * rows * target.rows * target.cols, nnz = weight.count();
  if (elements == 0) return;
  ask_for_huge_pages(target.data, elements * sizeof(T));
  if (target.layout == ConvLayout::batch_last)
    return conv_batch_last(source, target, weight, bias,
                           addend == nullptr ? nullptr : static_cast<const T*>(addend->data), activation, h, w);
  if (nnz == 0 && bias == nullptr && addend == nullptr) {  // relu and gelu keep a zero
    std::memset(target.data, 0, elements * sizeof(T));
    return;
  }
  if (conv_pixels_suit<T>(source, target, h, w))
    return conv_pixels(source, target, weight, bias, addend, activation, h, w);
  const double density = static_cast<double>(nnz) / static_cast<double>(rows);
  const ConvTiling tiling = conv_tiling(h, w, target.images, source.channels, rows, density, kLanes,
                                        source.layout == ConvLayout::channels_last);
  const int64_t plane = tiling.source_rows * tiling.source_cols, pixels = tiling.rows * tiling.cols;
  STD_TORCH_CHECK(source.channels * plane < (int64_t{1} << 31) / kLanes && pixels < (int64_t{1} << 31),
                  "sparse_conv2d: a tile of ", source.channels, " channels and ", plane, " pixels is too large");
  const auto rows_of = conv_classes(h, tiling.rows, tiling.whole), cols_of = conv_classes(w, tiling.cols, tiling.whole);
  const int most = SPARSE_OPS_DISPATCH(most_pixels)();
  const auto blocks = conv_blocks(rows_of, cols_of, tiling.source_cols, tiling.cols, most);
  const ConvLists<A> lists(weight, rows_of, cols_of, tiling.source_cols, plane);

  // A tile is worked on by several threads only where there are few tiles: each of them packs it for itself.
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t pieces = threads == 1 || tiling.tiles() >= 4 * threads
                             ? 1
                             : std::min((4 * threads + tiling.tiles() - 1) / tiling.tiles(), (rows + 15) / 16);
  std::vector<int64_t> costs(rows + 1);
  for (int64_t r = 0; r <= rows; ++r) costs[r] = lists.starts[r * lists.classes] + 4 * r;
  const auto cuts = conv_cuts(rows, pieces, costs);
  const int64_t step = target.layout == ConvLayout::channels_last ? 16 : std::max<int64_t>(1, 64 / pixels);
  const auto sum = SPARSE_OPS_DISPATCH(sum_row<A>);

  parallel(0, tiling.tiles() * pieces, 1, [&](int64_t begin, int64_t end) {
    A* slab = static_cast<A*>(scratch<kConvSlab>(source.channels * plane * 64));
    A* out = static_cast<A*>(scratch<kConvOut>(step * pixels * 64));
    int64_t packed = -1;
    for (int64_t item = begin; item < end; ++item) {
      const int64_t tile = item / pieces, first = tile / tiling.panels * kLanes;
      const int64_t col = tile % tiling.panels * tiling.cols;
      if (tile != packed) {
        const ConvWindow in{first, tiling.bands, tiling.whole ? 0 : h.origin(0), h.origin(tiling.rows) - h.origin(0),
                            tiling.whole ? 0 : w.origin(col), tiling.source_rows, tiling.source_cols};
        conv_pack(source, in, 0, source.channels, slab);
        packed = tile;
      }
      const ConvWindow window{first, tiling.bands, 0, tiling.rows, col, tiling.rows, tiling.cols};
      for (int64_t r = cuts[item % pieces], last = cuts[item % pieces + 1]; r < last; r += step) {
        const int64_t n = std::min(step, last - r);
        if (addend != nullptr) conv_pack(*addend, window, r, n, out);
        for (int64_t i = 0; i < n; ++i)
          sum(slab, blocks.data(), static_cast<int64_t>(blocks.size()), lists.entries.get(),
              lists.starts.data() + (r + i) * lists.classes, bias == nullptr ? A{} : A{widen(bias[r + i])},
              addend != nullptr, activation, out + i * pixels * kLanes);
        conv_unpack(target, window, r, n, out);
      }
    }
  });
}

ConvImages images(const Tensor& t, int64_t layout) {
  void* data = const_cast<void*>(t.const_data_ptr());
  return {data, t.scalar_type(), static_cast<ConvLayout>(layout), t.size(0), t.size(1), t.size(2), t.size(3)};
}

const int32_t* indices(const Tensor& t) { return static_cast<const int32_t*>(t.const_data_ptr()); }

template <typename F>
void with_type(ScalarType dtype, const F& f) {
  switch (dtype) {
    case ScalarType::Double: return f(double{});
    case ScalarType::Half: return f(Half{});
    case ScalarType::BFloat16: return f(Bfloat{});
    default: return f(float{});
  }
}

}  // namespace

void sparse_conv2d(Tensor x, Tensor values, Tensor row_offsets, Tensor columns, std::optional<Tensor> bias, Tensor y,
                   Sizes kernel_size, Sizes stride, Sizes padding, Sizes dilation, int64_t groups,
                   std::optional<Tensor> addend, std::string activation, int64_t layout) {
  const ConvImages source = images(x, layout), target = images(y, layout);
  const ConvImages added = addend ? images(*addend, layout) : ConvImages{};
  const ConvActivation act = activation == "relu"   ? ConvActivation::relu
                             : activation == "gelu" ? ConvActivation::gelu
                                                    : ConvActivation::none;
  const ConvAxis h{source.rows, target.rows, kernel_size[0], stride[0], padding[0], dilation[0], false};
  const ConvAxis w{source.cols, target.cols, kernel_size[1], stride[1], padding[1], dilation[1], false};
  with_type(source.dtype, [&](auto zero) {
    using T = decltype(zero);
    const ConvWeight<T> weight{static_cast<const T*>(values.const_data_ptr()),
                               indices(row_offsets),
                               indices(columns),
                               nullptr,
                               false,
                               kernel_size[0] * kernel_size[1],
                               groups,
                               target.channels / groups,
                               source.channels / groups};
    convolve(source, target, weight, bias ? static_cast<const T*>(bias->const_data_ptr()) : nullptr,
             addend ? &added : nullptr, act, h, w);
  });
}

void sparse_conv2d_input_grad(Tensor dy, Tensor values, Tensor t_row_offsets, Tensor t_columns, Tensor t_permutation,
                              Tensor dx, Sizes kernel_size, Sizes stride, Sizes padding, Sizes dilation,
                              int64_t groups, int64_t layout) {
  const ConvImages source = images(dy, layout), target = images(dx, layout);
  const ConvAxis h{source.rows, target.rows, kernel_size[0], stride[0], padding[0], dilation[0], true};
  const ConvAxis w{source.cols, target.cols, kernel_size[1], stride[1], padding[1], dilation[1], true};
  with_type(source.dtype, [&](auto zero) {
    using T = decltype(zero);
    const ConvWeight<T> weight{static_cast<const T*>(values.const_data_ptr()),
                               indices(t_row_offsets),
                               indices(t_columns),
                               indices(t_permutation),
                               true,
                               kernel_size[0] * kernel_size[1],
                               groups,
                               target.channels / groups,
                               source.channels / groups};
    convolve<T>(source, target, weight, nullptr, nullptr, ConvActivation::none, h, w);
  });
}

}  // namespace sparse_ops
