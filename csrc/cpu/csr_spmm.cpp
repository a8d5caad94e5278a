// Y = A B (+ bias per row): tiles of N over threads, rows over threads where there are too few tiles.
#include "csr_spmm.h"

#include <algorithm>
#include <cmath>

#include "csr_problem.h"
#include "csr_schedule.h"
#include "scratch.h"

#define SPARSE_OPS_BODY "cpu/csr_spmm_body.h"
#include "../foreach_isa.h"

namespace sparse_ops {
namespace {

// Of a core with 1 MiB of L2 cache (or 512 KiB and AVX2): 128 and 512 KiB are slower for 1024 x 1024 at 90 and at 98 %.
constexpr int64_t kPanelBytes = 256 * 1024;
constexpr int64_t kGroupedBytes = 64 << 20;  // the most that a regrouped matrix may take

// Whether the matrix is regrouped for this call (csr_grouped_body.h): float32 where that takes less than it gains. A
// nonzero gains 0.25 ns a tile and takes 0.35 once, the end of a row in a block takes 2 to 4: 3072 x 768 with N = 128
// takes 9 % less at 90 %, 3 % more at 98 %, where it is not done. An odd number of tiles is a tile less than in the
// usual way. Nothing here may depend on the number of threads, since it decides the order of sums. With AVX2 tiles of
// four vectors are as quick as they are as regrouped (Zen 3, 1024 x 1024 with N = 1024, 4096 x 4096 with N = 64) or
// quicker (3072 x 768 with N = 128: 1.0 against 1.5 ms at 90 %); without AVX-512 or AVX2 neither was measured.
bool is_grouped(const CsrProblem& p, int64_t nnz, int64_t tile) {
  if (isa() < Isa::avx512) return false;
  const int64_t tiles = (p.N + tile - 1) / tile, gained = tiles - 2 + tiles % 2 * 4;
  return p.dtype == Dtype::f32 && tiles >= 3 && gained * nnz >= 64 * p.M && nnz <= kGroupedBytes / 8 &&
         p.K * tile * 4 <= INT32_MAX;
}

void multiply_grouped(const CsrProblem& p, int64_t nnz, int64_t tile, int64_t threads) {
  constexpr double kBlockBytes = 64 * 1024, kInBlock = 8;  // half of it comes from L1; nonzeros of a row at least
  constexpr int64_t kRun = 1024;                           // rows whose sums wait in L2
  const double columns = std::max(kBlockBytes / (tile * 4), kInBlock * p.M * p.K / nnz);
  const int64_t blocks = std::max<int64_t>(1, std::llround(p.K / columns)), block = (p.K + blocks - 1) / blocks;
  const int64_t tiles = (p.N + tile - 1) / tile;
  const auto rows = row_cuts(p.offsets, p.M, std::max((p.M + kRun - 1) / kRun, threads));
  const int64_t runs = static_cast<int64_t>(rows.size()) - 1, parts = std::min(row_parts(tiles, threads), runs);
  int64_t most = 0;
  for (int64_t i = 0; i < runs; ++i) most = std::max(most, rows[i + 1] - rows[i]);
  auto* cuts = static_cast<int32_t*>(scratch<3>(p.M * (blocks + 1) * sizeof(int32_t)));
  void* entries = scratch<4>(nnz * 8);
  const auto cut = SPARSE_OPS_DISPATCH(cut_rows);
  const auto regroup = SPARSE_OPS_DISPATCH(regroup_rows);
  share(threads, runs, [&](const auto& next) {
    for (int64_t i = next(); i < runs; i = next()) {
      cut(p, rows[i], rows[i + 1], blocks, block, cuts);
      regroup(p, rows[i], rows[i + 1], blocks, cuts, entries);
    }
  });
  const auto run = SPARSE_OPS_DISPATCH(spmm_grouped);
  share(threads, tiles * parts, [&](const auto& next) {
    auto* panel = static_cast<float*>(scratch<1>(p.K * tile * sizeof(float)));
    auto* sums = static_cast<float*>(scratch<2>(most * tile * sizeof(float)));
    int64_t packed = -1;
    for (int64_t unit = next(); unit < tiles * parts; unit = next()) {
      const int64_t t = unit / parts, part = unit % parts;
      for (int64_t i = part * runs / parts; i < (part + 1) * runs / parts; ++i) {
        run(p, entries, cuts, blocks, t * tile, rows[i], rows[i + 1], panel, packed != t, sums);
        packed = t;
      }
    }
  });
}

// K and N: of b, whose leading dimensions may be several where it is transposed.
void multiply(const Tensor& values, const Tensor& row_offsets, const Tensor& columns, const Tensor& b,
              const std::optional<Tensor>& bias, bool transposed, int64_t K, int64_t N, const Tensor& y,
              const std::optional<Tensor>& addend, Activation activation) {
  CsrProblem p{};
  p.offsets = static_cast<const int32_t*>(row_offsets.const_data_ptr());
  p.columns = static_cast<const int32_t*>(columns.const_data_ptr());
  p.b = b.const_data_ptr();
  p.y = y.mutable_data_ptr();
  p.addend = addend ? addend->const_data_ptr() : nullptr;
  p.activation = activation;
  p.M = row_offsets.numel() - 1;
  p.K = K;
  p.N = N;
  p.transposed = p.y_transposed = transposed;
  p.dtype = dtype_of(values);
  p.values = values.const_data_ptr();
  p.bias = bias ? bias->const_data_ptr() : nullptr;
  if (p.M == 0 || p.N == 0) return;
  const int64_t vector = SPARSE_OPS_DISPATCH(vector_bytes)();
  const bool half = p.dtype == Dtype::f16 || p.dtype == Dtype::bf16;
  if (half && p.N > vector / 4)
    p.panel = p.dtype == Dtype::bf16 && isa() == Isa::avx512_bf16 ? Panel::pairs : Panel::halves;
  if (half && p.N > 1) {
    const auto widened = SPARSE_OPS_DISPATCH(widen);
    const int64_t count = p.panel == Panel::pairs ? 0 : values.numel();
    auto* floats = static_cast<float*>(scratch<0>((count + (bias ? p.M : 0)) * sizeof(float)));
    widened(p.values, p.dtype, count, floats);
    if (count > 0) p.values = floats;
    if (bias) {
      widened(p.bias, p.dtype, p.M, floats + count);
      p.bias = floats + count;
    }
  }
  if (const int64_t nnz = values.numel(); is_grouped(p, nnz, vector / 2))
    return multiply_grouped(p, nnz, vector / 2, useful_threads(nnz, p.M, p.N));
  const int64_t size = p.dtype == Dtype::f64 ? 8 : 4, panel_size = p.panel == Panel::computed ? size : 2;
  // Eight vectors of AVX2 fill half of Zen 3's L2 at K = 1024: 0.57 against 0.48 ms with four for N = 128 at 90 %.
  const int64_t most = panel_size == 2 || isa() == Isa::avx2 ? 4 : 8;
  const int64_t threads = useful_threads(values.numel(), p.M, p.N);
  const int64_t lanes = vector / panel_size;
  const bool narrow = p.panel == Panel::computed && vector >= 32 && 2 * p.N <= lanes;
  const int64_t tile = p.N == 1 ? 1 : narrow ? lanes / 2
                                             : tile_width(p.K, p.N, panel_size, vector, most, kPanelBytes, threads);
  p.direct = !transposed && tile == p.N && panel_size == static_cast<int64_t>(b.element_size());
  const int64_t tiles = (p.N + tile - 1) / tile;
  const auto cuts = row_cuts(p.offsets, p.M, row_parts(tiles, threads));
  const int64_t parts = static_cast<int64_t>(cuts.size()) - 1, units = tiles * parts;
  const auto run = SPARSE_OPS_DISPATCH(spmm);
  share(threads, units, [&](const auto& next) {
    void* panel = p.direct ? nullptr : scratch<1>(p.K * tile * panel_size);
    void* sums = scratch<2>(kSumRows * (tile < lanes ? lanes : tile) * size);
    int64_t packed = -1;
    for (int64_t unit = next(); unit < units; unit = next()) {
      const int64_t t = unit / parts, part = unit % parts;
      run(p, t * tile, tile, cuts[part], cuts[part + 1], panel, packed != t, sums);
      packed = t;
    }
  });
}

// Of b's dtype, on the CPU; the functions of torch::stable look their operator up by name, 0.5 us.
Tensor empty_like(const Tensor& b, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
  int32_t type;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(b.get(), &type));
  AtenTensorHandle made;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_empty_strided(static_cast<int64_t>(sizes.size()), sizes.data(),
                                                         strides.data(), type, aoti_torch_device_type_cpu(), 0, &made));
  return Tensor(made);
}

// Whether t is a CPU tensor of this dtype, these sizes and strides.
bool lies_as(const Tensor& t, ScalarType type, const std::vector<int64_t>& sizes, const std::vector<int64_t>& strides) {
  if (!t.is_cpu() || t.scalar_type() != type || t.dim() != static_cast<int64_t>(sizes.size())) return false;
  for (size_t d = 0; d < sizes.size(); ++d)
    if (t.size(d) != sizes[d] || (sizes[d] > 1 && t.stride(d) != strides[d])) return false;
  return true;
}

}  // namespace

void csr_spmm(Tensor values, Tensor row_offsets, Tensor columns, Tensor b, std::optional<Tensor> bias, bool transposed,
              Tensor y, std::optional<Tensor> addend, std::string activation) {
  multiply(values, row_offsets, columns, b, bias, transposed, b.size(transposed ? 1 : 0), b.size(transposed ? 0 : 1), y,
           addend, activation_of(activation));
}

std::optional<Tensor> csr_spmm_plain(Tensor values, Tensor row_offsets, Tensor columns, Tensor b,
                                     std::optional<Tensor> bias, bool transposed, int64_t K,
                                     std::optional<Tensor> addend, std::string activation, int64_t most_bytes) {
  if (activation != "none" && activation != "relu" && activation != "gelu") return std::nullopt;
  const ScalarType type = values.scalar_type();
  if (type != ScalarType::Float && type != ScalarType::BFloat16 && type != ScalarType::Half &&
      type != ScalarType::Double)
    return std::nullopt;
  const auto line = [](const Tensor& t, ScalarType wanted, int64_t n) {
    return t.is_cpu() && t.scalar_type() == wanted && t.dim() == 1 && t.numel() == n && t.is_contiguous();
  };
  const int64_t nnz = columns.numel(), M = row_offsets.numel() - 1, dims = b.dim();
  if (M < 0 || !line(values, type, nnz) || !line(columns, ScalarType::Int, nnz) ||
      !line(row_offsets, ScalarType::Int, M + 1) || (bias && !line(*bias, type, M)))
    return std::nullopt;
  if (!b.is_cpu() || b.scalar_type() != type || dims < 1 || (dims != 2 && !transposed) ||
      b.size(transposed ? dims - 1 : 0) != K)
    return std::nullopt;
  if (b.numel() > 0 && b.const_data_ptr() == nullptr) return std::nullopt;  // a tensor that says that it is all zeros
  const auto given = b.sizes();
  std::vector<int64_t> sizes(given.begin(), given.end()), strides(dims, 1);
  const bool swapped = !b.is_contiguous();
  if (swapped) {
    const auto steps = b.strides();
    if (dims != 2 || steps[0] != 1 || steps[1] != sizes[0]) return std::nullopt;
  }
  int64_t& outputs = sizes[transposed ? dims - 1 : 0];
  outputs = 1;
  int64_t N = 1;
  for (const int64_t size : sizes) N *= size;
  outputs = M;
  if (N * M * static_cast<int64_t>(b.element_size()) > most_bytes) return std::nullopt;
  if (swapped)
    strides[1] = sizes[0];
  else
    for (int64_t d = dims - 1; d > 0; --d) strides[d - 1] = strides[d] * std::max<int64_t>(1, sizes[d]);
  if (addend && !lies_as(*addend, type, sizes, strides)) return std::nullopt;
  Tensor y = empty_like(b, sizes, strides);
  multiply(values, row_offsets, columns, b, bias, transposed != swapped, K, N, y, addend, activation_of(activation));
  return y;
}

}  // namespace sparse_ops
