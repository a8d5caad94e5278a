// Tiles of images in lanes: a slab holds, for each channel and pixel of a tile, one line of 64 bytes, a lane per band.
#pragma once

#include "../common.h"

namespace sparse_ops {

// How (images, channels, rows, cols) lie in memory: in that order, with the channels innermost, with the images
// innermost.
enum class ConvLayout { contiguous, channels_last, batch_last };

struct ConvImages {
  void* data;
  ScalarType dtype;
  ConvLayout layout;
  int64_t images, channels, rows, cols;
};

// The lanes of a tile: lane l is band (first + l) % bands of image (first + l) / bands; lanes beyond the last image are
// empty. Row r of a tile is row row0 + band * row_step + r of the image, column c is column col0 + c.
struct ConvWindow {
  int64_t first, bands, row0, row_step, col0, rows, cols;
};

// Slots of cpu/scratch.h, one for each purpose.
enum ConvScratch { kConvSlab = 40, kConvOut, kConvRow, kConvStarts, kConvEntries, kConvBias, kConvPartial };

// Fill slab (n, rows, cols, lanes) with channels first_channel .. + n of the window; zero outside of the images and in
// empty lanes.
void conv_pack(const ConvImages& from, const ConvWindow& window, int64_t first_channel, int64_t n, void* slab);

// Write channels first_channel .. + n of the window from slab (n, rows, cols, lanes); what lies outside is left out.
void conv_unpack(const ConvImages& to, const ConvWindow& window, int64_t first_channel, int64_t n, const void* slab);

}  // namespace sparse_ops
