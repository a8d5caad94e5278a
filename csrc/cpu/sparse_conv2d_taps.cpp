// Runs of target pixels, the taps that they see, and tiles of runs.
#include "sparse_conv2d_taps.h"

namespace sparse_ops {

namespace {

// Whether n target columns may be one run: those inside of it see the same taps, and of these an end may miss some.
bool is_run(const ConvAxis& w, const int32_t* columns, int64_t n) {
  if (n < 3) return true;
  for (int64_t k = 0; k < w.kernel; ++k) {
    const bool inside = w.sees(columns[1], k), first = w.sees(columns[0], k), last = w.sees(columns[n - 1], k);
    if (inside ? !first && !last : first || last) return false;
    for (int64_t i = 2; i + 1 < n; ++i)
      if (w.sees(columns[i], k) != inside) return false;
  }
  return true;
}

struct Columns {
  int32_t first, pixels;  // target column, how many
};

std::vector<Columns> column_runs(const ConvAxis& w, int most) {
  const int64_t phases = w.transposed ? w.stride : 1;
  std::vector<Columns> result;
  for (int64_t phase = 0; phase < std::min(phases, w.target); ++phase) {
    std::vector<int32_t> columns;
    for (int64_t t = phase; t < w.target; t += phases) columns.push_back(static_cast<int32_t>(t));
    const auto count = static_cast<int64_t>(columns.size());
    for (int64_t at = 0, n; at < count; at += n) {
      const int64_t pieces = (count - at + most - 1) / most;
      n = (count - at + pieces - 1) / pieces;
      while (!is_run(w, columns.data() + at, n)) --n;
      result.push_back({columns[at], static_cast<int32_t>(n)});
    }
  }
  return result;
}

}  // namespace

ConvTapRuns conv_tap_runs(const ConvAxis& h, const ConvAxis& w, int64_t source_channels, int most) {
  // Of a core's 1 MiB of L2 cache, where the target's lines and the lists pass through as well.
  constexpr int64_t kCached = 256 << 10;
  ConvTapRuns result;
  result.in_step = static_cast<int32_t>(w.transposed ? 1 : w.stride);
  result.out_step = static_cast<int32_t>(w.transposed ? w.stride : 1);
  const auto columns = column_runs(w, most);
  const auto rows = conv_classes(h, h.target, true);
  std::vector<int32_t> class_of(h.target);
  std::vector<std::pair<int32_t, int32_t>> seen;  // the segments of (row class, column run)
  for (size_t i = 0; i < rows.size(); ++i) {
    for (const int32_t t : rows[i].target) class_of[t] = static_cast<int32_t>(i);
    for (const Columns& c : columns) {
      const int64_t last = c.first + (c.pixels - 1) * result.out_step;
      const auto first = static_cast<int32_t>(result.segments.size());
      for (int64_t tap = 0; tap < h.kernel * w.kernel; ++tap) {
        const int64_t k = tap % w.kernel;
        if (rows[i].offset[tap / w.kernel] < 0) continue;
        const bool at_first = w.sees(c.first, k), at_last = w.sees(last, k);
        const bool inside = c.pixels > 2 ? w.sees(c.first + result.out_step, k) : at_first || at_last;
        if (!inside) continue;
        const ConvSegment one{static_cast<int32_t>(tap), static_cast<int32_t>(tap + 1), !at_first, !at_last};
        const bool begins = static_cast<int32_t>(result.segments.size()) == first;
        ConvSegment* before = begins ? nullptr : &result.segments.back();
        if (before != nullptr && before->end == tap && before->without_first == one.without_first &&
            before->without_last == one.without_last)
          before->end = one.end;
        else
          result.segments.push_back(one);
      }
      seen.emplace_back(first, static_cast<int32_t>(result.segments.size()));
    }
  }

  // A tile is a part of a target row. Where windows of neighbouring rows overlap, the tiles of one strip of columns
  // follow each other, so that what a window has in common with the next one is still in the cache.
  // 1 of no pixels too
  const int64_t row_lines = std::max<int64_t>(1, source_channels * std::min(h.extent(1), h.source));
  const int64_t lines = kCached / (64 * row_lines);
  const auto n_columns = static_cast<int64_t>(columns.size());
  const int64_t reach = static_cast<int64_t>(result.in_step) * most;
  const int64_t strip = std::clamp<int64_t>((lines - w.kernel + 1) / reach, 1, n_columns);
  const bool overlap = h.extent(2) < 2 * h.extent(1);
  const int64_t strips = (n_columns + strip - 1) / strip, tiles = strips * h.target;
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t t = overlap ? i % h.target : i / strips, part = overlap ? i / h.target : i % strips;
    const int64_t begin = part * n_columns / strips, end = (part + 1) * n_columns / strips;
    const auto first = static_cast<int32_t>(result.runs.size());
    int64_t left = w.source, right = 0;
    for (int64_t c = begin; c < end; ++c) {
      const auto& [from, to] = seen[class_of[t] * n_columns + c];
      const int64_t in = w.base(columns[c].first);
      result.runs.push_back({columns[c].pixels, static_cast<int32_t>(h.base(t) * w.source + in),
                             static_cast<int32_t>(t * w.target + columns[c].first), from, to});
      left = std::min(left, in);
      right = std::max(right, in + columns[c].pixels * result.in_step + w.extent(1));
    }
    // New to a tile below another are the last source rows of its windows.
    const int64_t below = std::clamp<int64_t>(h.origin(t) + h.extent(1), 0, h.source);
    const int64_t above = t == 0 ? 0 : std::clamp<int64_t>(h.origin(t - 1) + h.extent(1), 0, h.source);
    left = std::clamp<int64_t>(left, 0, w.source);
    right = std::clamp<int64_t>(right, left, w.source);
    ConvTile tile{first, static_cast<int32_t>(result.runs.size()), 0, 0};
    if (below > above) {
      tile.fetch = static_cast<int32_t>(above * w.source + left);
      tile.fetch_count = static_cast<int32_t>((below - above - 1) * w.source + right - left);
    }
    result.tiles.push_back(tile);
  }
  return result;
}

}  // namespace sparse_ops
