// How the work on a sparse matrix is cut: tiles of the dense dimension, and rows of about equal work.
#pragma once

#include <atomic>
#include <vector>

#include "../common.h"

namespace sparse_ops {

constexpr int64_t kSerialWork = 1 << 19;  // multiply-adds that one thread ends (20 us) before a second one wakes up
constexpr int64_t kRowAlign = 16;

// How many threads are worth waking for nnz nonzeros in M rows; below 8 columns a nonzero costs as much as for 8.
inline int64_t useful_threads(int64_t nnz, int64_t M, int64_t N) {
  return (nnz + M) * (N < 8 ? 8 : N) < kSerialWork ? 1 : torch::stable::get_num_threads();
}

// The width of a tile of N, 1, 2, 4 or 8 vectors, at most `most`: the widest whose panel of depth K takes at most
// `preferred` bytes, or twice that for 2 vectors (1 of halves), below which loads of indices outweigh the arithmetic;
// and with a tile for every thread.
inline int64_t tile_width(int64_t K, int64_t N, int64_t size, int64_t vector_bytes, int64_t most, int64_t preferred,
                          int64_t threads) {
  const int64_t one = vector_bytes / size, two = size == 2 ? one : 2 * one;
  int64_t width = most * one;
  const auto too_wide = [&] {
    const int64_t bytes = K * width * size;
    return width / 2 >= N || bytes > 2 * preferred ||
           (width > two && (bytes > preferred || (N + width - 1) / width < threads));
  };
  while (width > one && too_wide()) width /= 2;
  return width;
}

// Into how many parts the rows of each tile are cut; every part packs its own panel.
inline int64_t row_parts(int64_t tiles, int64_t threads) {
  return tiles % threads == 0 || tiles >= 4 * threads ? 1 : threads;
}

// Bounds of `parts` or fewer runs of rows with about equal numbers of nonzeros.
inline std::vector<int64_t> row_cuts(const int32_t* offsets, int64_t rows, int64_t parts) {
  constexpr int64_t kRowCost = 2;  // what a row costs without any nonzero, in nonzeros
  std::vector<int64_t> cuts{0};
  const int64_t total = offsets[rows] + kRowCost * rows;
  int64_t row = 0;
  for (int64_t part = 1; part < parts; ++part) {
    while (row < rows && offsets[row] + kRowCost * row < total * part / parts) row += kRowAlign;
    if (row > cuts.back() && row < rows) cuts.push_back(row);
  }
  cuts.push_back(rows);
  return cuts;
}

// f(next) once in each of `threads` threads; a thread takes its units [0, units) one by one from next().
template <typename F>
void share(int64_t threads, int64_t units, const F& f) {
  std::atomic<int64_t> taken{0};
  const auto next = [&] { return taken.fetch_add(1); };
  parallel(0, threads < units ? threads : units, 1, [&](int64_t, int64_t) { f(next); });
}

}  // namespace sparse_ops
