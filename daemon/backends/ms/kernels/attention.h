// The paged key-value cache of one layer, and attention over it.
#pragma once

#include <vector>

#include "attention_table.h"
#include "format.h"
#include "memory.h"
#include "step.h"

namespace mindport {

struct HeadShape {
  int64_t heads, kv_heads, head_dim, rotary_dim;
  int64_t window;  // how many positions a row sees, its own included; 0: all
  int64_t group() const { return heads / kv_heads; }
  int64_t padded_dim() const { return (head_dim + 15) / 16 * 16; }
};

// Keys and values as float32 or, rounded to nearest, as bfloat16, float16 or int8. Per block and kv head: keys
// [head_dim][16 positions], then values [padded_dim / 16][16 positions][16]; for int8, then the scales
// of the 16 keys and of the 16 values.
class LayerCache {
 public:
  LayerCache(const HeadShape& shape, int64_t num_blocks, Format format);

  Format format() const { return format_; }
  uint8_t* keys(int64_t block, int64_t kv_head) const {
    return memory_.bytes() + (block * shape_.kv_heads + kv_head) * head_bytes();
  }
  uint8_t* values(int64_t block, int64_t kv_head) const { return keys(block, kv_head) + keys_bytes(); }
  int64_t key_scales_at() const { return keys_bytes() + values_bytes(); }                     // after the keys
  int64_t value_scales_at() const { return values_bytes() + kLanes * int64_t{sizeof(float)}; }  // after the values
  void write(int64_t block, int64_t slot, int64_t kv_head, const float* key, const float* value);
  void copy(int64_t from, int64_t to);
  int64_t block_bytes() const { return shape_.kv_heads * head_bytes(); }

 private:
  int64_t keys_bytes() const { return shape_.head_dim * kLanes * cache_element_bytes(format_); }
  int64_t values_bytes() const { return shape_.padded_dim() * kLanes * cache_element_bytes(format_); }
  int64_t scales_bytes() const { return format_ == Format::int8 ? 2 * kLanes * int64_t{sizeof(float)} : 0; }
  int64_t head_bytes() const { return keys_bytes() + values_bytes() + scales_bytes(); }

  HeadShape shape_;
  Format format_;
  Memory memory_;
};

// What the heads of a layer have beyond their shape.
struct HeadWeights {
  const std::vector<float>& slopes;   // ALiBi slope of each head, or empty
  const float *query_norm, *key_norm; // RMSNorm of each head before it turns, or null
  float eps;
  const std::vector<float>& factors;  // divide the rotary frequencies, or empty
};

// Rotates and scatters one step's projected rows [rows][q heads | k heads | v heads], then attends.
class Attention {
 public:
  Attention(const HeadShape& shape, const HeadWeights& weights) : shape_(shape), weights_(weights) {}

  // `projected` has `stride` floats between rows; `queries` holds rows * heads * head_dim floats. Queries are scaled
  // by 1/sqrt(head_dim) and stored [kv head][row][head of the group][head_dim]; keys and values go to the cache.
  void scatter(Step& step, float* projected, int64_t stride, float* queries, LayerCache& cache) const;

  // out [rows][heads * head_dim]. Each row attends over the positions it sees, in the same order whatever the step.
  void attend(Step& step, const float* queries, const LayerCache& cache, float* out) const;

 private:
  HeadShape shape_;
  HeadWeights weights_;
};

}  // namespace mindport
