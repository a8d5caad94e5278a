// dY B^T at the positions of a pattern: groups of tiles of N, and rows, over threads; partial sums added in fixed
// order.
#include "csr_sddmm.h"

#include <algorithm>
#include <cmath>

#include "csr_problem.h"
#include "csr_schedule.h"
#include "scratch.h"

#define SPARSE_OPS_BODY "cpu/csr_sddmm_body.h"
#include "../foreach_isa.h"

namespace sparse_ops {
namespace {

constexpr int64_t kPanelBytes = 1 << 20;        // wider than a product's: a nonzero ends with a store and its sum
constexpr int64_t kPartialBytes = 16 << 20;     // the partial sums of all groups
constexpr int64_t kGroups = 8;                  // at most; more threads than this share a group by rows

// Whether nonzeros are taken by blocks of columns, so many that a row has some in each: float32, whose panel is far
// larger than L1. With AVX2, whose loop takes four nonzeros of a row at once, blocks gain a tenth at 90 % and lose a
// fifth at 98 %.
int64_t blocks_of(const CsrProblem& p, int64_t nnz, int64_t tile) {
  constexpr double kBlockBytes = 64 * 1024, kInBlock = 8;
  if (p.dtype != Dtype::f32 || p.N <= 3 * tile || isa() == Isa::avx2) return 1;
  const double columns = std::max(kBlockBytes / (tile * 4), kInBlock * p.M * p.K / nnz);
  return columns * tile * 4 > 2 * kBlockBytes ? 1 : std::max<int64_t>(1, std::llround(p.K / columns));
}

void sddmm_by_blocks(const CsrProblem& p, int64_t nnz, int64_t tile, int64_t groups, int64_t blocks, int64_t threads,
                     float* result) {
  constexpr int64_t kRun = 256;  // rows that are packed at once
  const int64_t tiles = (p.N + tile - 1) / tile, block = (p.K + blocks - 1) / blocks;
  const auto rows = row_cuts(p.offsets, p.M, std::max((p.M + kRun - 1) / kRun, threads));
  const int64_t runs = static_cast<int64_t>(rows.size()) - 1, parts = std::min(row_parts(groups, threads), runs);
  int64_t most = 0;
  for (int64_t i = 0; i < runs; ++i) most = std::max(most, rows[i + 1] - rows[i]);
  auto* cuts = static_cast<int32_t*>(scratch<3>((p.M * (2 * blocks + 1) + 1 + nnz) * sizeof(int32_t)));
  int32_t *offsets = cuts + p.M * (blocks + 1), *columns = offsets + p.M * blocks + 1;
  auto* partial = static_cast<float*>(scratch<0>(groups * nnz * sizeof(float)));
  CsrProblem grouped = p;
  grouped.offsets = offsets;
  grouped.columns = columns;
  const auto cut = SPARSE_OPS_DISPATCH(cut_rows);
  const auto group = SPARSE_OPS_DISPATCH(group_rows);
  const auto run = SPARSE_OPS_DISPATCH(sddmm_grouped);
  const auto reduce_runs = SPARSE_OPS_DISPATCH(reduce_grouped);
  share(threads, runs, [&](const auto& next) {
    for (int64_t i = next(); i < runs; i = next()) {
      cut(p, rows[i], rows[i + 1], blocks, block, cuts);
      group(p, rows[i], rows[i + 1], blocks, cuts, offsets, columns);
    }
  });
  share(threads, groups * parts, [&](const auto& next) {
    auto* panel = static_cast<float*>(scratch<1>(p.K * tile * sizeof(float)));
    auto* packed_rows = static_cast<float*>(scratch<2>(most * tile * sizeof(float)));
    int64_t packed = -1;
    for (int64_t unit = next(); unit < groups * parts; unit = next()) {
      const int64_t g = unit / parts, part = unit % parts, begin = g * tiles / groups, end = (g + 1) * tiles / groups;
      for (int64_t t = begin; t < end; ++t)
        for (int64_t i = part * runs / parts; i < (part + 1) * runs / parts; ++i) {
          run(grouped, t * tile, tile, blocks, rows[i], rows[i + 1], panel, packed_rows, packed != t, t > begin,
              partial + g * nnz);
          packed = t;
        }
    }
  });
  share(threads, runs, [&](const auto& next) {
    for (int64_t i = next(); i < runs; i = next())
      reduce_runs(partial, groups, nnz, offsets, cuts, blocks, rows[i], rows[i + 1], result);
  });
}

}  // namespace

void csr_sddmm(Tensor dy, Tensor b, Tensor row_offsets, Tensor columns, bool dy_transposed, bool b_transposed,
               Tensor dvalues) {
  CsrProblem p{};
  p.offsets = static_cast<const int32_t*>(row_offsets.const_data_ptr());
  p.columns = static_cast<const int32_t*>(columns.const_data_ptr());
  p.b = b.const_data_ptr();
  p.y = const_cast<void*>(dy.const_data_ptr());
  p.M = row_offsets.numel() - 1;
  p.K = b.size(b_transposed ? 1 : 0);
  p.N = b.size(b_transposed ? 0 : 1);
  p.transposed = b_transposed;
  p.y_transposed = dy_transposed;
  p.dtype = dtype_of(dvalues);
  const int64_t nnz = columns.numel(), size = p.dtype == Dtype::f64 ? 8 : 4;
  if (nnz == 0) return;
  if (p.N == 0) {
    std::memset(dvalues.mutable_data_ptr(), 0, nnz * dvalues.element_size());
    return;
  }
  const int64_t threads = useful_threads(nnz, p.M, p.N);
  if (p.N == 1) {
    const auto run = SPARSE_OPS_DISPATCH(sddmm_vector);
    const auto cuts = row_cuts(p.offsets, p.M, threads);
    share(threads, static_cast<int64_t>(cuts.size()) - 1, [&](const auto& next) {
      for (size_t part = next(); part + 1 < cuts.size(); part = next())
        run(p, cuts[part], cuts[part + 1], dvalues.mutable_data_ptr());
    });
    return;
  }
  // Tiles and groups are the order of the sums: they may not depend on the number of threads.
  const int64_t vector = SPARSE_OPS_DISPATCH(vector_bytes)();
  if (p.dtype == Dtype::f16 || p.dtype == Dtype::bf16)
    p.panel = p.dtype == Dtype::bf16 && isa() == Isa::avx512_bf16 ? Panel::pairs : Panel::halves;
  const int64_t panel_size = p.panel == Panel::computed ? size : 2, most = p.panel == Panel::halves ? 4 : 8;
  const int64_t tile = tile_width(p.K, p.N, panel_size, vector, most, kPanelBytes, 1);
  p.direct = !b_transposed && tile == p.N;
  const int64_t tiles = (p.N + tile - 1) / tile;
  int64_t groups = tiles < kGroups ? tiles : kGroups;
  while (groups > 1 && groups * nnz * size > kPartialBytes) groups /= 2;
  if (const int64_t blocks = blocks_of(p, nnz, tile); blocks > 1)
    return sddmm_by_blocks(p, nnz, tile, groups, blocks, threads, static_cast<float*>(dvalues.mutable_data_ptr()));
  const auto cuts = row_cuts(p.offsets, p.M, row_parts(groups, threads));
  const int64_t parts = static_cast<int64_t>(cuts.size()) - 1, units = groups * parts;
  const bool alone = groups == 1 && p.panel == Panel::computed;  // the one group's sums are the result
  void* result = dvalues.mutable_data_ptr();
  auto* partial = static_cast<unsigned char*>(alone ? result : scratch<0>(groups * nnz * size));
  const auto run = SPARSE_OPS_DISPATCH(sddmm);
  share(threads, units, [&](const auto& next) {
    void* panel = p.direct ? nullptr : scratch<1>(p.K * tile * panel_size);
    void* rows = scratch<2>(kPackedRows * tile * panel_size);
    int64_t packed = -1;
    for (int64_t unit = next(); unit < units; unit = next()) {
      const int64_t group = unit / parts, part = unit % parts;
      const int64_t begin = group * tiles / groups, end = (group + 1) * tiles / groups;
      for (int64_t t = begin; t < end; ++t) {
        run(p, t * tile, tile, cuts[part], cuts[part + 1], panel, rows, packed != t, t > begin,
            partial + group * nnz * size);
        packed = t;
      }
    }
  });
  if (alone) return;
  const auto add = SPARSE_OPS_DISPATCH(reduce);
  parallel(0, nnz, kSerialWork,
           [&](int64_t begin, int64_t end) { add(p.dtype, partial, groups, nnz, begin, end, result); });
}

}  // namespace sparse_ops
