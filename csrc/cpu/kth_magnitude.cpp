// Selects the k-th smallest magnitude by narrowing an interval of bit patterns, one histogram a pass.
//
// A sample brackets the key; each pass counts what lies below the interval and histograms what lies inside, which is
// proof enough: the rank falls into one bin, which is the next interval, or outside, and the pass tells on which side.
// Weights of a network take two passes. The worst case is the miss and one pass for every 11 bits of the key.
#include "kth_magnitude.h"

#include <algorithm>
#include <mutex>

#include "chunks.h"

namespace sparse_ops {
namespace {

constexpr int kBins = 2048;

struct Interval {
  uint64_t low, last;  // both inside
  int shift;           // a bin is (key - low) >> shift
};

struct Tally {
  uint64_t below, at_low, largest;
  uint32_t* bins;  // kBins pairs: two histograms side by side, without the keys that equal low
};

}  // namespace
}  // namespace sparse_ops

#define SPARSE_OPS_BODY "cpu/kth_magnitude_body.h"
#include "../foreach_isa.h"

namespace sparse_ops {
namespace {

constexpr int64_t kSampleFrom = 1 << 16;  // a pass over fewer elements costs less than a sample

Interval interval(uint64_t low, uint64_t last) {
  int shift = 0;
  while ((last - low) >> shift >= kBins) ++shift;
  return {low, last, shift};
}

struct Pass {
  uint64_t below = 0, inside = 0, largest = 0;
  std::vector<uint64_t> bins = std::vector<uint64_t>(kBins);
  int64_t nan_tensor = -1;
};

class Selector {
 public:
  Selector(const Tensors& tensors, Float promoted) : promoted_(promoted), chunks_(chunks_of(tensors)) {
    for (const Tensor& t : tensors) {
      types_.push_back(float_type(t.scalar_type()));
      data_.push_back(static_cast<const char*>(t.const_data_ptr()));
      n_ += t.numel();
    }
  }

  Selection select(int64_t k) const {
    const uint64_t end = (uint64_t{1} << (8 * size_of(promoted_) - 1)) - 1, rank = static_cast<uint64_t>(k);
    Interval in = n_ < kSampleFrom ? interval(0, end) : guess(k, end);
    while (true) {
      const Pass pass = tally(in);
      if (pass.nan_tensor >= 0) return {0, 0, 0, pass.nan_tensor};
      if (rank <= pass.below) {
        in = interval(0, in.low - 1);
      } else if (rank > pass.below + pass.inside) {
        in = interval(in.last + 1, end);
      } else {
        uint64_t below = pass.below, bin = 0;
        while (below + pass.bins[bin] < rank) below += pass.bins[bin++];
        const uint64_t low = in.low + (bin << in.shift);
        if (in.shift == 0) return {low, static_cast<int64_t>(below), static_cast<int64_t>(pass.bins[bin]), -1};
        in = interval(low, std::min(in.last, low + (uint64_t{1} << in.shift) - 1));
      }
    }
  }

 private:
  // f(block, count) over a chunk in the promoted type.
  template <typename F>
  void blocks(int64_t tensor, int64_t first, int64_t count, const F& f) const {
    const Float type = types_[tensor];
    const char* data = data_[tensor] + first * size_of(type);
    if (type == promoted_) return f(data, count);
    const auto convert = SPARSE_OPS_DISPATCH(widen);
    alignas(64) double buffer[kWidenBlock];
    for (int64_t i = 0; i < count; i += kWidenBlock) {
      const int64_t n = std::min(kWidenBlock, count - i);
      f(convert(data + i * size_of(type), type, promoted_, n, buffer), n);
    }
  }

  uint64_t key(int64_t tensor, int64_t index) const {
    uint64_t bits = 0;
    blocks(tensor, index, 1, [&](const void* data, int64_t) { std::memcpy(&bits, data, size_of(promoted_)); });
    return bits & ((uint64_t{1} << (8 * size_of(promoted_) - 1)) - 1);
  }

  // An interval that holds the key with a probability above 99.9 %, from keys spread evenly over all tensors.
  Interval guess(int64_t k, uint64_t end) const {
    const int64_t samples = std::clamp<int64_t>(n_ / 256, 1024, 16384), stride = n_ / samples;
    std::vector<uint64_t> keys;
    keys.reserve(samples);
    size_t c = 0;
    int64_t before = 0;  // elements in the chunks before chunk c
    for (int64_t j = 0; j < samples; ++j) {
      const int64_t jitter = static_cast<int64_t>(j * 0x9e3779b97f4a7c15ULL >> 33) % stride;  // breaks regular patterns
      const int64_t position = j * stride + jitter;
      while (position - before >= chunks_[c].count) before += chunks_[c++].count;
      keys.push_back(key(chunks_[c].tensor, chunks_[c].first + position - before));
    }
    const double share = static_cast<double>(k) / static_cast<double>(n_), m = static_cast<double>(samples);
    const int64_t margin = static_cast<int64_t>(3.5 * std::sqrt(m * share * (1 - share))) + 4;
    const int64_t middle = static_cast<int64_t>(share * m), left = middle - margin, right = middle + margin;
    uint64_t low = 0, last = end;
    if (left > 0) {
      std::nth_element(keys.begin(), keys.begin() + left, keys.end());
      low = keys[left];
    }
    if (right < samples) {
      std::nth_element(keys.begin(), keys.begin() + right, keys.end());
      last = keys[right];
    }
    return interval(low, last);
  }

  Pass tally(const Interval& in) const {
    Pass pass;
    std::mutex mutex;
    const auto tally_one = SPARSE_OPS_DISPATCH(tally_block);
    const uint64_t infinity = infinity_bits(promoted_);
    parallel_chunks(chunks_, [&](int64_t begin, int64_t end) {
      std::vector<uint32_t> bins(2 * kBins);
      Tally piece{0, 0, 0, bins.data()};
      int64_t nan_tensor = -1, counted = 0;
      const auto merge = [&] {
        const std::lock_guard<std::mutex> lock(mutex);
        for (int b = 0; b < kBins; ++b) pass.bins[b] += uint64_t{bins[2 * b]} + bins[2 * b + 1];
        std::fill(bins.begin(), bins.end(), 0);
        counted = 0;
      };
      for (int64_t c = begin; c < end; ++c) {
        const Chunk& chunk = chunks_[c];
        blocks(chunk.tensor, chunk.first, chunk.count,
               [&](const void* data, int64_t n) { tally_one(data, n, size_of(promoted_), in, piece); });
        if (nan_tensor < 0 && piece.largest > infinity) nan_tensor = chunk.tensor;
        counted += chunk.count;
        if (counted > int64_t{1} << 31) merge();  // before a 32-bit bin can overflow
      }
      merge();
      const std::lock_guard<std::mutex> lock(mutex);
      pass.below += piece.below;
      pass.bins[0] += piece.at_low;
      if (nan_tensor >= 0 && (pass.nan_tensor < 0 || nan_tensor < pass.nan_tensor)) pass.nan_tensor = nan_tensor;
    });
    for (const uint64_t count : pass.bins) pass.inside += count;
    return pass;
  }

  Float promoted_;
  std::vector<Chunk> chunks_;
  std::vector<Float> types_;
  std::vector<const char*> data_;
  int64_t n_ = 0;
};

}  // namespace

Selection select_magnitude(const Tensors& tensors, Float promoted, int64_t k) {
  return Selector(tensors, promoted).select(k);
}

void kth_magnitude(Tensors tensors, int64_t k, Tensor out) {
  const Float promoted = float_type(out.scalar_type());
  const Selection selection = select_magnitude(tensors, promoted, k);
  const uint64_t quiet_bit = uint64_t{1} << (promoted == Float::float64   ? 51
                                             : promoted == Float::float32 ? 22
                                             : promoted == Float::float16 ? 9
                                                                          : 6);
  const uint64_t bits = selection.nan_tensor < 0 ? selection.key : infinity_bits(promoted) | quiet_bit;
  std::memcpy(out.mutable_data_ptr(), &bits, size_of(promoted));  // little endian
}

}  // namespace sparse_ops
