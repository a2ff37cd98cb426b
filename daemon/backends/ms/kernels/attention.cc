#include "attention.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "table.h"
#include "threadpool.h"

namespace mindport {
namespace {

constexpr int64_t kChunk = 512;  // positions whose softmax is taken together; fixed, it decides the order of sums
constexpr int64_t kTilesAtOnce = 6;  // tiles of query rows per task: they share the keys and values in the cache

// Attention of some query rows of one kv head: `count` tokens times the heads of the group.
class QueryGroup {
 public:
  QueryGroup(const HeadShape& shape, const std::vector<float>& slopes, const LayerCache& cache, const Segment& segment,
             int64_t kv_head)
      : shape_(shape), slopes_(slopes), cache_(cache), segment_(segment), kv_head_(kv_head), table_(kernels()) {}

  // `queries` [count * group][head_dim]; `scratch` from scratch_floats(); token i writes to out + i * out_row.
  void run(const float* queries, int64_t first, int64_t count, float* scratch, float* out, int64_t out_row) {
    rows_ = count * shape_.group();
    first_ = segment_.start + first;
    scores_ = scratch;
    values_ = scores_ + rows_ * kChunk;
    chunk_values_ = values_ + rows_ * shape_.padded_dim();
    states_.assign(static_cast<size_t>(rows_), SoftmaxState{-INFINITY, 0.0f});
    const int64_t context = first_ + count;
    for (int64_t chunk = first_seen(first_) / kChunk * kChunk; chunk < context; chunk += kChunk) {
      const int64_t length = std::min(kChunk, context - chunk);
      skipped_ = std::max<int64_t>(0, first_seen(first_) - chunk) / 16 * 16;
      each_tile([&](int64_t row, int64_t rows) { score(queries, chunk, length, row, rows); });
      weigh(chunk, length);
      for (int64_t p = skipped_; p < length; p += 16)
        blocks_[p / 16] = cache_.values(segment_.blocks[(chunk + p) / 16], kv_head_);
      each_tile([&](int64_t row, int64_t rows) { gather(length, row, rows); });
      join(chunk);
    }
    const int64_t group = shape_.group(), dim = shape_.head_dim;
    for (int64_t r = 0; r < rows_; ++r)
      table_.divide(values_ + r * shape_.padded_dim(), states_[static_cast<size_t>(r)].total, dim,
                    out + r / group * out_row + (kv_head_ * group + r % group) * dim);
  }

  static int64_t scratch_floats(const HeadShape& shape, int64_t tokens) {
    return tokens * shape.group() * (kChunk + 2 * shape.padded_dim());
  }

 private:
  template <class Body>
  void each_tile(const Body& body) const {
    const int64_t tiles = (rows_ + table_.tile_rows - 1) / table_.tile_rows;
    for (int64_t t = 0, row = 0; t < tiles; ++t) {
      const int64_t rows = (rows_ - row) / (tiles - t);
      body(row, rows);
      row += rows;
    }
  }

  int64_t position(int64_t row) const { return first_ + row / shape_.group(); }

  int64_t first_seen(int64_t position) const {
    return shape_.window > 0 ? std::max<int64_t>(0, position + 1 - shape_.window) : 0;
  }

  // The positions [first, last) of the chunk that a row sees.
  struct Span {
    int64_t first, last;
  };
  Span seen(int64_t row, int64_t chunk) const {
    return {std::clamp<int64_t>(first_seen(position(row)) - chunk, 0, kChunk),
            std::clamp<int64_t>(position(row) + 1 - chunk, 0, kChunk)};
  }

  // Two blocks at a time: their keys are two panels, however far apart.
  void score(const float* queries, int64_t chunk, int64_t length, int64_t row, int64_t rows) const {
    const auto& widths = table_.tile[static_cast<int>(cache_.format())][rows];
    const float* q = queries + row * shape_.head_dim;
    for (int64_t p = skipped_; p < length;) {
      const uint8_t* keys = cache_.keys(segment_.blocks[(chunk + p) / 16], kv_head_);
      const bool pair = widths[1] != nullptr && p + 16 < length;
      const int64_t apart = pair ? cache_.keys(segment_.blocks[(chunk + p) / 16 + 1], kv_head_) - keys : 0;
      widths[pair]({q, shape_.head_dim, keys, apart / element_bytes(cache_.format()), shape_.head_dim, scores_ + row * kChunk + p, kChunk, false});
      p += pair ? 32 : 16;
    }
  }

  void weigh(int64_t chunk, int64_t length) {
    chunk_states_.resize(states_.size());
    for (int64_t r = 0; r < rows_; ++r) {
      float* scores = scores_ + r * kChunk;
      const auto [first, last] = seen(r, chunk);
      if (!slopes_.empty()) {
        const int64_t head = kv_head_ * shape_.group() + r % shape_.group();
        table_.alibi(slopes_[static_cast<size_t>(head)], chunk - position(r), last, scores);
      }
      if (first < last) {
        const int64_t aligned = first / 16 * 16;
        std::fill(scores + aligned, scores + first, -INFINITY);
        chunk_states_[static_cast<size_t>(r)] =
            table_.softmax(scores + aligned, last - aligned, round_up(length, 16) - aligned);
      }
      std::fill(scores, scores + (first < last ? first : length), 0.0f);
    }
  }

  void gather(int64_t length, int64_t row, int64_t rows) const {
    const auto& widths = table_.gather_tile[static_cast<int>(cache_.format())][rows];
    const int64_t dim = shape_.padded_dim(), panels = dim / 16;
    for (int64_t panel = 0; panel < panels;) {
      int log = kTileWidths - 1;
      while (log > 0 && (widths[log] == nullptr || panel + (1 << log) > panels)) --log;
      widths[log]({scores_ + row * kChunk + skipped_, kChunk, blocks_ + skipped_ / 16, panel * 256, length - skipped_,
                   chunk_values_ + row * dim + panel * 16, dim});
      panel += 1 << log;
    }
  }

  void join(int64_t chunk) {
    const int64_t dim = shape_.padded_dim();
    for (int64_t r = 0; r < rows_; ++r) {
      const auto [first, last] = seen(r, chunk);
      if (first >= last) continue;
      float* values = values_ + r * dim;
      const float* more = chunk_values_ + r * dim;
      auto& state = states_[static_cast<size_t>(r)];
      if (chunk <= first_seen(position(r))) {
        state = chunk_states_[static_cast<size_t>(r)];
        std::memcpy(values, more, static_cast<size_t>(dim) * sizeof(float));
      } else {
        table_.merge(&state, values, chunk_states_[static_cast<size_t>(r)], more, dim);
      }
    }
  }

  const HeadShape& shape_;
  const std::vector<float>& slopes_;
  const LayerCache& cache_;
  const Segment& segment_;
  int64_t kv_head_;
  const KernelTable& table_;
  int64_t rows_ = 0, first_ = 0;
  int64_t skipped_ = 0;  // positions of the chunk that no row sees any more
  float *scores_ = nullptr, *values_ = nullptr, *chunk_values_ = nullptr;
  const void* blocks_[kChunk / 16];  // where the values of the chunk lie
  std::vector<SoftmaxState> states_, chunk_states_;
};

template <class T, class Convert>
void put(T* keys, T* values, int64_t slot, int64_t dim, const float* key, const float* value, Convert convert) {
  for (int64_t i = 0; i < dim; ++i) keys[i * 16 + slot] = convert(key[i]);
  for (int64_t i = 0; i < dim; ++i) values[i / 16 * 256 + slot * 16 + i % 16] = convert(value[i]);
}

}  // namespace

LayerCache::LayerCache(const HeadShape& shape, int64_t num_blocks, Format format) : shape_(shape), format_(format) {
  memory_ = Memory(static_cast<size_t>(num_blocks * block_bytes()));
}

void LayerCache::write(int64_t block, int64_t slot, int64_t kv_head, const float* key, const float* value) {
  void *k = keys(block, kv_head), *v = values(block, kv_head);
  if (format_ == Format::float32)
    return put(static_cast<float*>(k), static_cast<float*>(v), slot, shape_.head_dim, key, value, [](float x) { return x; });
  const auto narrow = format_ == Format::bfloat16 ? to_bfloat16 : to_float16;
  put(static_cast<uint16_t*>(k), static_cast<uint16_t*>(v), slot, shape_.head_dim, key, value, narrow);
}

void LayerCache::copy(int64_t from, int64_t to) {
  std::memcpy(keys(to, 0), keys(from, 0), static_cast<size_t>(block_bytes()));
}

void Attention::scatter(Step& step, float* projected, int64_t stride, float* queries, LayerCache& cache) const {
  const int64_t dim = shape_.head_dim, group = shape_.group(), half = shape_.rotary_dim / 2;
  const Rotary* turn = half > 0 ? &step.rotary(half, weights_.factors) : nullptr;
  const float scale = 1.0f / std::sqrt(static_cast<float>(dim));
  const KernelTable& table = kernels();
  const auto row_of_heads = [&](int64_t row, int64_t kv) {
    float* q = projected + row * stride + kv * group * dim;
    float* k = projected + row * stride + (shape_.heads + kv) * dim;
    const float* v = projected + row * stride + (shape_.heads + shape_.kv_heads + kv) * dim;
    const auto prepare = [&](float* head, const float* norm) {
      if (norm != nullptr) table.rms_norm(head, norm, weights_.eps, dim, head);
      if (turn != nullptr) table.rotate(head, turn->cos.data() + row * half, turn->sin.data() + row * half, half);
    };
    for (int64_t h = 0; h < group; ++h) prepare(q + h * dim, weights_.query_norm);
    prepare(k, weights_.key_norm);
    table.scale(scale, group * dim, q);
    std::memcpy(queries + (kv * step.rows + row) * group * dim, q, static_cast<size_t>(group * dim) * sizeof(float));
    const Segment& segment = step.segments[static_cast<size_t>(step.segment_of(row))];
    const int64_t position = step.position(row);
    cache.write(segment.blocks[position / 16], position % 16, kv, k, v);
  };
  ThreadPool::instance().each(step.rows * shape_.kv_heads, 16, [&](int64_t first, int64_t last, int) {
    for (int64_t i = first; i < last; ++i) row_of_heads(i / shape_.kv_heads, i % shape_.kv_heads);
  });
}

void Attention::attend(Step& step, const float* queries, const LayerCache& cache, float* out) const {
  static std::vector<Memory> scratch;
  auto& pool = ThreadPool::instance();
  const int64_t group = shape_.group(), dim = shape_.head_dim;
  const int64_t tokens = std::max<int64_t>(1, kTilesAtOnce * kernels().tile_rows / group);
  const auto& tasks = step.tasks(tokens);
  scratch.resize(std::max(scratch.size(), static_cast<size_t>(pool.size())));
  int64_t cost = 0;  // of one kv head over all tasks
  for (const AttentionTask& task : tasks)
    cost += 2 * group * dim * task.count * (step.segments[static_cast<size_t>(task.segment)].start + task.first + task.count);
  const int64_t count = static_cast<int64_t>(tasks.size()) * shape_.kv_heads;
  const int64_t grain = std::max<int64_t>(1, kWorthAThread * count / std::max<int64_t>(1, cost * shape_.kv_heads));
  pool.each(count, grain, [&](int64_t first, int64_t last, int worker) {
    const auto floats = static_cast<size_t>(QueryGroup::scratch_floats(shape_, tokens));
    float* memory = scratch[static_cast<size_t>(worker)].at_least(floats);
    for (int64_t i = first; i < last; ++i) {
      const AttentionTask& task = tasks[static_cast<size_t>(i / shape_.kv_heads)];
      const int64_t kv = i % shape_.kv_heads;
      const Segment& segment = step.segments[static_cast<size_t>(task.segment)];
      const int64_t row = segment.row + task.first;
      QueryGroup(shape_, weights_.slopes, cache, segment, kv)
          .run(queries + (kv * step.rows + row) * group * dim, task.first, task.count, memory,
               out + row * shape_.heads * dim, shape_.heads * dim);
    }
  });
}

}  // namespace mindport
