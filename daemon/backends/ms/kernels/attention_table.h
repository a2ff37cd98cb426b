// The operations of attention over a paged cache that every instruction set implements.
#pragma once

#include "format.h"

namespace mindport {

constexpr int kCacheFormats = 4;  // the float formats, and int8 with a scale a position
constexpr int kAttentionRows = 12;  // rows of the largest tile of any instruction set
constexpr int64_t kPointersAhead = 8;  // that a list of blocks goes on for, so that what comes next can be fetched

constexpr int64_t kBlocksAhead = 4;  // of values that are fetched

constexpr int64_t cache_element_bytes(Format format) {
  return format == Format::float32 ? 4 : format == Format::int8 ? 1 : 2;
}

// scores[m, 16 b + lane] = sum over k of q[m, k] * keys[b][k][lane], times the scale of the lane for int8.
struct ScoreTile {
  const float* q;
  int64_t q_row;
  const uint8_t* const* keys;  // of each block: [dim][16]
  int64_t blocks, dim;
  int64_t scales;              // bytes from a block's keys to the scales of its keys
  float* scores;
  int64_t scores_row;
};

// out[m, i] (i < 16 * panels) = sum over positions p of weights[m, p] * values[p / 16][i / 16][p % 16][i % 16].
struct MixTile {
  const float* weights;
  int64_t weights_row;
  const uint8_t* const* values;  // of each block: [panels][16 positions][16]
  int64_t positions, panels;
  float* out;
  int64_t out_row;
};

// One row of attention, accumulated chunk by chunk: out = sum of weights * V relative to `maximum`.
struct SoftmaxState {
  float maximum;
  float total;
};

struct AttentionTable {
  int tile_rows;  // most rows a tile takes
  void (*score[kCacheFormats][kAttentionRows + 1])(const ScoreTile&);  // by rows
  void (*mix[kCacheFormats][kAttentionRows + 1])(const MixTile&);
  // scores[0, valid) -> exp(score - max), zeros up to `padded` (a multiple of 16); the maximum and the sum
  SoftmaxState (*softmax)(float* scores, int64_t valid, int64_t padded);
  void (*alibi)(float slope, int64_t first, int64_t n, float* scores);  // scores[i] += slope * (first + i)
  // weights[16 b + lane] *= the scale of the lane, which lies `scales` bytes after values[b]
  void (*scale_positions)(float* weights, const uint8_t* const* values, int64_t scales, int64_t blocks);
  // joins the weighted values of a further chunk to those of the chunks before it
  void (*merge)(SoftmaxState* state, float* values, SoftmaxState chunk, const float* chunk_values, int64_t n);
  void (*divide)(const float* values, float divisor, int64_t n, float* out);
};

}  // namespace mindport
