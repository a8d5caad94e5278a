// Counts and collects what is not zero, row by row, and transposes it by a stable counting sort; rows over threads.
#include "csr_pattern.h"

#include <cstring>
#include <type_traits>
#include <vector>

#include "scratch.h"

namespace sparse_ops {
namespace {

constexpr int64_t kSerialElements = 1 << 16;

bool is_floating(ScalarType type) {
  return type == ScalarType::Float || type == ScalarType::Double || type == ScalarType::Half ||
         type == ScalarType::BFloat16;
}

// The bits of an element as a word whose zero means zero: `shift` drops the sign of floating types.
template <typename Word, int Shift>
struct Matrix {
  const Word* data;
  int64_t columns;
  static bool some(Word word) { return static_cast<Word>(word << Shift) != 0; }

  int64_t count(int64_t row) const {
    const Word* from = data + row * columns;
    int64_t n = 0;
    for (int64_t k = 0; k < columns; ++k) n += some(from[k]);
    return n;
  }

  // The columns and the values of a row; every element is written to its place, and stays where it is not zero.
  void collect(int64_t row, int32_t* places, Word* values) const {
    const Word* from = data + row * columns;
    int64_t n = 0;
    for (int64_t k = 0; k < columns; ++k) {
      places[n] = static_cast<int32_t>(k);
      values[n] = from[k];
      n += some(from[k]);
    }
  }
};

template <typename F>
void with_matrix(const Tensor& dense, const F& f) {
  const void* data = dense.const_data_ptr();
  const int64_t columns = dense.size(1);
  const bool floating = is_floating(dense.scalar_type());
  switch (dense.element_size()) {
    case 1: return f(Matrix<uint8_t, 0>{static_cast<const uint8_t*>(data), columns});
    case 2:
      return floating ? f(Matrix<uint16_t, 1>{static_cast<const uint16_t*>(data), columns})
                      : f(Matrix<uint16_t, 0>{static_cast<const uint16_t*>(data), columns});
    case 4:
      return floating ? f(Matrix<uint32_t, 1>{static_cast<const uint32_t*>(data), columns})
                      : f(Matrix<uint32_t, 0>{static_cast<const uint32_t*>(data), columns});
    default:
      return floating ? f(Matrix<uint64_t, 1>{static_cast<const uint64_t*>(data), columns})
                      : f(Matrix<uint64_t, 0>{static_cast<const uint64_t*>(data), columns});
  }
}

int64_t rows_at_once(int64_t columns) { return kSerialElements / (columns + 1) + 1; }

}  // namespace

int64_t csr_pattern_offsets(Tensor dense, Tensor row_offsets) {
  const int64_t rows = dense.size(0);
  auto* offsets = static_cast<int32_t*>(row_offsets.mutable_data_ptr());
  with_matrix(dense, [&](const auto& matrix) {
    parallel(0, rows, rows_at_once(matrix.columns), [&](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) offsets[r + 1] = static_cast<int32_t>(matrix.count(r));
    });
  });
  int64_t total = 0;
  offsets[0] = 0;
  for (int64_t r = 1; r <= rows; ++r) {
    total += offsets[r];
    offsets[r] = static_cast<int32_t>(total);
  }
  return total;
}

void csr_pattern_fill(Tensor dense, Tensor row_offsets, Tensor columns, Tensor t_row_offsets, Tensor t_columns,
                      Tensor t_permutation, std::optional<Tensor> values) {
  const int64_t rows = dense.size(0), width = dense.size(1), nnz = columns.numel();
  const auto* offsets = static_cast<const int32_t*>(row_offsets.const_data_ptr());
  auto* places = static_cast<int32_t*>(columns.mutable_data_ptr());
  with_matrix(dense, [&](const auto& matrix) {
    using Word = std::remove_const_t<std::remove_pointer_t<decltype(matrix.data)>>;
    auto* kept = values ? static_cast<Word*>(values->mutable_data_ptr()) : nullptr;
    parallel(0, rows, rows_at_once(width), [&](int64_t begin, int64_t end) {
      auto* row_places = static_cast<int32_t*>(scratch<0>((width + 1) * sizeof(int32_t)));
      auto* row_values = static_cast<Word*>(scratch<1>((width + 1) * sizeof(Word)));
      for (int64_t r = begin; r < end; ++r) {
        const int64_t at = offsets[r], n = offsets[r + 1] - at;
        if (n == 0) continue;
        matrix.collect(r, row_places, row_values);
        std::memcpy(places + at, row_places, n * sizeof(int32_t));
        if (kept != nullptr) std::memcpy(kept + at, row_values, n * sizeof(Word));
      }
    });
  });
  // Each part of the rows counts its columns; where a column of a part begins follows from those before it.
  auto* t_offsets = static_cast<int32_t*>(t_row_offsets.mutable_data_ptr());
  auto* t_places = static_cast<int32_t*>(t_columns.mutable_data_ptr());
  auto* from = static_cast<int32_t*>(t_permutation.mutable_data_ptr());
  const int64_t most = nnz / (4 * width + 1) + 1, threads = torch::stable::get_num_threads();
  const int64_t parts = threads < most ? threads : most;
  std::vector<int32_t> starts(parts * width);
  parallel(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      int32_t* counts = starts.data() + part * width;
      for (int32_t i = offsets[rows * part / parts]; i < offsets[rows * (part + 1) / parts]; ++i) ++counts[places[i]];
    }
  });
  int32_t total = 0;
  for (int64_t k = 0; k < width; ++k) {
    t_offsets[k] = total;
    for (int64_t part = 0; part < parts; ++part) {
      const int32_t n = starts[part * width + k];
      starts[part * width + k] = total;
      total += n;
    }
  }
  t_offsets[width] = total;
  parallel(0, parts, 1, [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      int32_t* next = starts.data() + part * width;
      for (int64_t r = rows * part / parts; r < rows * (part + 1) / parts; ++r)
        for (int32_t i = offsets[r]; i < offsets[r + 1]; ++i) {
          const int32_t at = next[places[i]]++;
          t_places[at] = static_cast<int32_t>(r);
          from[at] = i;
        }
    }
  });
}

void csr_pattern_permute(Tensor values, Tensor t_permutation, Tensor out) {
  const auto* from = static_cast<const int32_t*>(t_permutation.const_data_ptr());
  const auto permute = [&](const auto* values, auto* to) {
    constexpr int64_t kAhead = 64;  // a column of a large matrix jumps from page to page
    parallel(0, out.numel(), kSerialElements, [&](int64_t begin, int64_t end) {
      int64_t i = begin;
      for (; i + kAhead < end; ++i) {
        __builtin_prefetch(values + from[i + kAhead]);
        to[i] = values[from[i]];
      }
      for (; i < end; ++i) to[i] = values[from[i]];
    });
  };
  const void* in = values.const_data_ptr();
  void* to = out.mutable_data_ptr();
  switch (values.element_size()) {
    case 2: return permute(static_cast<const uint16_t*>(in), static_cast<uint16_t*>(to));
    case 4: return permute(static_cast<const uint32_t*>(in), static_cast<uint32_t*>(to));
    case 8: return permute(static_cast<const uint64_t*>(in), static_cast<uint64_t*>(to));
  }
  STD_TORCH_CHECK(false, "csr_pattern_permute: values of ", values.element_size(), " bytes");
}

}  // namespace sparse_ops
