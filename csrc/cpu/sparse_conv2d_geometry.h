// Where the outputs of a sparse convolution find their inputs: classes of output coordinates, and tiles.
//
// One description serves the forward pass (source = input, target = output) and the input gradient (transposed: source
// = output gradient, target = input gradient). Target coordinates that see the same kernel taps at the same distances
// form a class: inside an image there is one class, at each border and for each phase of a stride there are more.
#pragma once

#include <cstdint>
#include <vector>

namespace sparse_ops {

// What is done to a sum before it is stored.
enum class ConvActivation { none, relu, gelu };

// One value of the sparse matrix as one class sees it: the line of the slab relative to the pixel's first line.
template <typename A>
struct ConvEntry {
  int32_t offset;
  A value;
};

// Up to eight target pixels of one class: their lines in the slab and in the output.
struct ConvBlock {
  int32_t cls, pixels, in[8], out[8];
};

struct ConvAxis {
  int64_t source, target, kernel, stride, padding, dilation;
  bool transposed;

  // The first source coordinate that `target` coordinates from t0 on can see; transposed: t0 is a multiple of stride.
  int64_t origin(int64_t t0) const;
  // How many source coordinates n target coordinates can see.
  int64_t extent(int64_t n) const;
  // Target t reads the source coordinate base(t) + delta(k) at tap k, if it reads any.
  int64_t base(int64_t t) const;
  int64_t delta(int64_t k) const;
  bool sees(int64_t t, int64_t k) const;
};

struct ConvClass {
  std::vector<int32_t> target, base;  // coordinates of the class, and the source coordinate that offsets count from
  std::vector<int32_t> offset;        // per tap; -1 where the class does not see it
};

// The classes of the first n target coordinates. whole: the slab holds the whole source and nothing else, so that taps
// outside of it are left out; otherwise it holds origin(0) .. origin(0) + extent(n), zero outside of the source.
std::vector<ConvClass> conv_classes(const ConvAxis& axis, int64_t n, bool whole);

// A tile holds 64 bytes of lanes; a lane is a band of target rows of one image, a tile covers `cols` target columns.
struct ConvTiling {
  bool whole;
  int64_t rows, cols, bands, panels;  // target rows of a band, columns of a panel; how many of them in an image
  int64_t source_rows, source_cols;
  int64_t groups;  // of lanes

  int64_t tiles() const { return groups * panels; }
};

// The cheapest tiling by an estimate of its cycles: a function of the shape, the number of values and the memory format
// alone, so that the tiling depends on neither threads nor instruction sets. values_per_channel: of a target channel.
ConvTiling conv_tiling(const ConvAxis& h, const ConvAxis& w, int64_t images, int64_t source_channels,
                       int64_t target_channels, double values_per_channel, int64_t lanes, bool channels_last);

// The pixels of a tile in blocks of at most `most` pixels; class (i, j) has the number i * columns.size() + j.
std::vector<ConvBlock> conv_blocks(const std::vector<ConvClass>& rows, const std::vector<ConvClass>& columns,
                                   int64_t source_cols, int64_t target_cols, int most);

}  // namespace sparse_ops
