// Planes of pixels: where the pixels of a tile stand for convolutions with neighbouring pixels in the lanes of a
// register.
//
// The source pixels of a tile are copied into planes, one for each channel, whose rows follow each other with just the
// zeros between them that the taps reach. There a tap is one distance for all pixels: a sum adds whole registers at q +
// distance, whatever the row, and leaves out its few lanes that fall between rows.
#pragma once

#include <vector>

#include "sparse_conv2d_geometry.h"
#include "sparse_conv2d_lanes.h"

namespace sparse_ops {

// Lanes of one line of target positions: `count` of them, those in `mask`, are pixels; the first is number `at` of its
// run, and the image's pixels in the run are `room` from there on.
struct ConvLine {
  int32_t at, room;
  uint16_t mask, count;
};

// Target t reads, at tap k, the source coordinate (t + shift[k]) * stride + phase, where all taps have one phase.
struct PlaneAxis {
  int64_t target, stride, phase, coordinates;  // coordinates: of the phase, as far as the targets see them
  int64_t low, high;                           // the least and the greatest shift
  bool one_phase;
  std::vector<int64_t> shift;

  explicit PlaneAxis(const ConvAxis& axis);
};

// A tile: target rows row .. row + rows - 1 of images first .. first + images - 1.
struct PlaneTile {
  int64_t first, images, row, rows;
};

// A tile is whole images, or a band of rows of one. Its positions are numbered from the first target on: target (row,
// col) of image i is i * image + row * pitch + col, and a tap reads the same number further on in its channel's plane.
struct PlaneTiling {
  PlaneAxis h, w;
  int64_t lanes, pitch, image, images, rows, bands;  // images, rows: of a tile; bands: of an image
  int64_t lead, plane;                               // positions before the first target's, and of a whole plane
  bool joined;                                       // the lines of an image end where those of the next begin

  // Planes of `channels` channels, `size` bytes a position, that stay in the L2 cache where possible.
  PlaneTiling(const ConvAxis& h, const ConvAxis& w, int64_t count, int64_t channels, int64_t lanes, int64_t size);

  // False where taps are of several phases of a stride, where planes of a row are too large, and where too many lanes
  // would lie between rows.
  bool serves(int64_t channels, int64_t size) const;

  int64_t tiles(int64_t count) const;
  // How many images of a tile one run takes, `apart` elements from one to the next.
  int64_t together(int64_t apart) const;
  PlaneTile tile(int64_t number, int64_t count) const;
  int64_t line_count(int64_t rows) const;
  // The lines of n target rows of each of `several` images; `apart`: from an image's first pixel to the next one's.
  std::vector<ConvLine> lines(int64_t n, int64_t several, int64_t apart) const;
  // From a target's position in the plane of channel 0, without `lead`, to what it reads at a tap.
  int64_t distance(int64_t tap) const;
};

// Fills the planes of all channels, which hold zeros or an earlier tile. zeros: as many as there are channels.
template <typename T>
void fill_planes(const ConvImages& x, const PlaneTiling& tiling, const PlaneTile& tile, const T* zeros, void* planes);

// The pixels of a tile of y in channels r .. r + n - 1, as runs of accumulators: image i of channel r + k from
// runs[k * pitch + i * apart] on. apart and pitch are multiples of the lanes, runs begin a cache line.
template <typename T>
void read_runs(const ConvImages& y, const PlaneTile& tile, int64_t r, int64_t n, int64_t apart, int64_t pitch,
               void* runs);

// The way back. past: whole lines go past the caches, where T is not a half, and written() ends that.
template <typename T>
void write_runs(const void* runs, int64_t apart, int64_t pitch, bool past, const ConvImages& y, const PlaneTile& tile,
                int64_t r, int64_t n);
void written();

}  // namespace sparse_ops
