// How the work on a sparse matrix is cut: tiles of the dense dimension, and rows of about equal work.
#pragma once

#include <atomic>
#include <vector>

#include "../common.h"

namespace sparse_ops {

constexpr int64_t kSerialWork = 1 << 15;       // multiply-adds that one thread ends before a second one would wake up
constexpr int64_t kPanelBytes = 128 * 1024;  // an eighth of the L2 cache of a Zen 4 core; 512 KiB took 1.5 times as long
constexpr int64_t kRowAlign = 16;

// 1, 2, 4 or 8 vectors: the widest whose panel of depth K fits, with a tile for every thread.
inline int64_t tile_width(int64_t K, int64_t N, int64_t size, int64_t vector_bytes, int64_t threads) {
  int64_t width = 8 * vector_bytes / size;
  while (width > vector_bytes / size &&
         (width / 2 >= N || K * width * size > kPanelBytes || (width * (threads - 1) >= N && width * size > 128)))
    width /= 2;
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
