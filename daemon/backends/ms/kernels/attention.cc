#include "attention.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>

#include "table.h"
#include "threadpool.h"

namespace mindport {
namespace {

constexpr int64_t kChunk = 512;  // positions whose softmax is taken together; fixed, it decides the order of sums
constexpr int64_t kTilesAtOnce = 6;  // tiles of query rows per task: they share the keys and values in the cache
constexpr int64_t kPiecesAThread = 8;  // of long contexts, so that threads end together

int64_t first_seen(const HeadShape& shape, int64_t position) {
  return shape.window > 0 ? std::max<int64_t>(0, position + 1 - shape.window) : 0;
}

struct ChunkRange {
  int64_t first, last;
};

// The chunks that `count` tokens from position `first` on see something of.
ChunkRange chunks_of(const HeadShape& shape, int64_t first, int64_t count) {
  return {first_seen(shape, first) / kChunk, (first + count + kChunk - 1) / kChunk};
}

// What a row makes of some chunks: its weighted values, then its softmax state.
int64_t partial_row(const HeadShape& shape) { return shape.padded_dim() + kLanes; }

// Attention of some query rows of one kv head: `count` tokens times the heads of the group.
class QueryGroup {
 public:
  // `queries` [count * group][head_dim], the first at `first` in the segment; `scratch` from scratch_floats().
  QueryGroup(const HeadShape& shape, const HeadWeights& weights, const LayerCache& cache, const Segment& segment,
             int64_t kv_head, const float* queries, int64_t first, int64_t count, float* scratch)
      : shape_(shape), weights_(weights), cache_(cache), segment_(segment), kv_head_(kv_head), queries_(queries),
        first_(segment.start + first), count_(count), rows_(count * shape.group()), scores_(scratch),
        table_(kernels().attention) {}

  static int64_t scratch_floats(const HeadShape& shape, int64_t tokens) {
    return tokens * shape.group() * (kChunk + 2 * partial_row(shape));
  }

  int64_t partial_floats() const { return rows_ * partial_row(shape_); }

  // The chunks one after the other: token i writes to out + i * out_row.
  void run(float* out, int64_t out_row) {
    float* joined = scores_ + rows_ * kChunk;
    float* partial = joined + partial_floats();
    const ChunkRange chunks = chunks_of(shape_, first_, count_);
    for (int64_t chunk = chunks.first; chunk < chunks.last; ++chunk) {
      compute(chunk, partial);
      join(chunk, partial, joined);
    }
    finish(joined, out, out_row);
  }

  // The same of chunks that were computed apart.
  void run(const float* partials, float* out, int64_t out_row) {
    float* joined = scores_ + rows_ * kChunk;
    const ChunkRange chunks = chunks_of(shape_, first_, count_);
    for (int64_t chunk = chunks.first; chunk < chunks.last; ++chunk, partials += partial_floats())
      join(chunk, partials, joined);
    finish(joined, out, out_row);
  }

  void compute(int64_t chunk, float* partial) {
    const int64_t start = chunk * kChunk, length = std::min(kChunk, first_ + count_ - start);
    const int64_t skipped = std::max<int64_t>(0, first_seen(shape_, first_) - start) / 16 * 16;  // no row sees them any more
    const int64_t blocks = (length - skipped + 15) / 16;
    find(start + skipped, blocks);
    const int format = static_cast<int>(cache_.format());
    const int64_t dim = shape_.head_dim, stride = partial_row(shape_);
    each_tile([&](int64_t row, int64_t rows) {
      table_.score[format][rows]({queries_ + row * dim, dim, keys_, blocks, dim, cache_.key_scales_at(),
                                  scores_ + row * kChunk + skipped, kChunk});
    });
    for (int64_t r = 0; r < rows_; ++r) {
      weigh(r, start, length, partial + r * stride + shape_.padded_dim());
      if (cache_.format() == Format::int8)
        table_.scale_positions(scores_ + r * kChunk + skipped, values_, cache_.value_scales_at(), blocks);
    }
    each_tile([&](int64_t row, int64_t rows) {
      table_.mix[format][rows]({scores_ + row * kChunk + skipped, kChunk, values_, length - skipped,
                                shape_.padded_dim() / 16, partial + row * stride, stride});
    });
  }

 private:
  // The positions [first, last) of a chunk that a row sees.
  struct Span {
    int64_t first, last;
  };

  int64_t position(int64_t row) const { return first_ + row / shape_.group(); }
  Span seen(int64_t row, int64_t start) const {
    return {std::clamp<int64_t>(first_seen(shape_, position(row)) - start, 0, kChunk),
            std::clamp<int64_t>(position(row) + 1 - start, 0, kChunk)};
  }

  template <class Body>
  void each_tile(const Body& body) const {
    const int64_t tiles = (rows_ + table_.tile_rows - 1) / table_.tile_rows;
    for (int64_t t = 0, row = 0; t < tiles; ++t) {
      const int64_t rows = (rows_ - row) / (tiles - t);
      body(row, rows);
      row += rows;
    }
  }

  // Where keys and values of the chunk lie, and some blocks more, to be fetched ahead.
  void find(int64_t from, int64_t blocks) {
    const int64_t last = (first_ + count_ - 1) / 16;
    for (int64_t i = 0; i < blocks + kPointersAhead; ++i) {
      const int64_t block = segment_.blocks[std::min(last, from / 16 + i)];
      keys_[i] = cache_.keys(block, kv_head_);
      values_[i] = cache_.values(block, kv_head_);
    }
    std::copy_n(values_, kPointersAhead, keys_ + blocks);  // after its keys, a chunk's values are read
  }

  // Scores of a row become weights; its softmax state goes to `state`.
  void weigh(int64_t row, int64_t start, int64_t length, float* state) const {
    float* scores = scores_ + row * kChunk;
    const auto [first, last] = seen(row, start);
    const int64_t aligned = first / 16 * 16;
    if (first < last) {
      if (!weights_.slopes.empty()) {
        const int64_t head = kv_head_ * shape_.group() + row % shape_.group();
        table_.alibi(weights_.slopes[static_cast<size_t>(head)], start + aligned - position(row), last - aligned,
                     scores + aligned);
      }
      std::fill(scores + aligned, scores + first, -INFINITY);
      const SoftmaxState made = table_.softmax(scores + aligned, last - aligned, round_up(length, 16) - aligned);
      std::memcpy(state, &made, sizeof made);
    }
    std::fill(scores, scores + (first < last ? first : length), 0.0f);
  }

  void join(int64_t chunk, const float* partial, float* joined) const {
    const int64_t dim = shape_.padded_dim(), stride = partial_row(shape_);
    for (int64_t r = 0; r < rows_; ++r, partial += stride, joined += stride) {
      const auto [first, last] = seen(r, chunk * kChunk);
      if (first >= last) continue;
      if (chunk * kChunk <= first_seen(shape_, position(r))) {
        std::memcpy(joined, partial, static_cast<size_t>(stride) * sizeof(float));
        continue;
      }
      SoftmaxState state, more;
      std::memcpy(&state, joined + dim, sizeof state);
      std::memcpy(&more, partial + dim, sizeof more);
      table_.merge(&state, joined, more, partial, dim);
      std::memcpy(joined + dim, &state, sizeof state);
    }
  }

  void finish(const float* joined, float* out, int64_t out_row) const {
    const int64_t group = shape_.group(), dim = shape_.head_dim, stride = partial_row(shape_);
    for (int64_t r = 0; r < rows_; ++r) {
      SoftmaxState state;
      std::memcpy(&state, joined + r * stride + shape_.padded_dim(), sizeof state);
      table_.divide(joined + r * stride, state.total, dim,
                    out + r / group * out_row + (kv_head_ * group + r % group) * dim);
    }
  }

  const HeadShape& shape_;
  const HeadWeights& weights_;
  const LayerCache& cache_;
  const Segment& segment_;
  int64_t kv_head_;
  const float* queries_;
  int64_t first_, count_, rows_;
  float* scores_;
  const AttentionTable& table_;
  const uint8_t *keys_[kChunk / 16 + kPointersAhead], *values_[kChunk / 16 + kPointersAhead];
};

template <class T, class Convert>
void put(T* keys, T* values, int64_t slot, int64_t dim, const float* key, const float* value, Convert convert) {
  for (int64_t i = 0; i < dim; ++i) keys[i * 16 + slot] = convert(key[i]);
  for (int64_t i = 0; i < dim; ++i) values[i / 16 * 256 + slot * 16 + i % 16] = convert(value[i]);
}

// The largest magnitude goes to 127. What is not finite makes the scale NaN, and so all that is computed with it.
float whole_scale(const float* x, int64_t n) {
  float largest = 0.0f;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::fabs(x[i]));
  return kernels().finite(x, n) ? largest / 127.0f : NAN;
}

int8_t whole(float x, float inverse) {
  constexpr float kMagic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  return static_cast<int8_t>((x * inverse + kMagic) - kMagic);
}

}  // namespace

LayerCache::LayerCache(const HeadShape& shape, int64_t num_blocks, Format format) : shape_(shape), format_(format) {
  memory_ = Memory(static_cast<size_t>(num_blocks * block_bytes()), Pages::small);
}

void LayerCache::write(int64_t block, int64_t slot, int64_t kv_head, const float* key, const float* value) {
  uint8_t *k = keys(block, kv_head), *v = values(block, kv_head);
  const int64_t dim = shape_.head_dim;
  if (format_ == Format::float32)
    return put(reinterpret_cast<float*>(k), reinterpret_cast<float*>(v), slot, dim, key, value, [](float x) { return x; });
  if (format_ != Format::int8) {
    const auto narrow = format_ == Format::bfloat16 ? to_bfloat16 : to_float16;
    return put(reinterpret_cast<uint16_t*>(k), reinterpret_cast<uint16_t*>(v), slot, dim, key, value, narrow);
  }
  const auto row = [&](uint8_t* to, int64_t step, int64_t panel, int64_t first, const float* from, uint8_t* scales) {
    const float scale = whole_scale(from, dim), inverse = std::isnormal(scale) ? 1.0f / scale : 0.0f;
    reinterpret_cast<float*>(scales)[slot] = inverse == 0.0f && !std::isnan(scale) ? 0.0f : scale;
    for (int64_t i = 0; i < dim; ++i) to[i / 16 * panel + first + i % 16 * step] = static_cast<uint8_t>(whole(from[i], inverse));
  };
  row(k, 16, 256, slot, key, k + key_scales_at());
  row(v, 1, 256, slot * 16, value, v + value_scales_at());
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
  ThreadPool::instance().each(step.rows * shape_.kv_heads, 8, [&](int64_t first, int64_t last, int) {
    for (int64_t i = first; i < last; ++i) row_of_heads(i / shape_.kv_heads, i % shape_.kv_heads);
  });
}

namespace {

// Query rows of one kv head, or some chunks of their context that one thread computes.
struct Piece {
  AttentionTask task;
  int64_t kv_head;
  int64_t first, last;  // chunks
  int64_t split;        // which of the split ones it belongs to; -1: it is whole
  int64_t size() const { return (last - first) * task.count; }
};

// Query rows whose chunks several threads compute; the one that ends last joins them, in order.
struct Split {
  int64_t first_chunk;
  int64_t partials;  // where in memory
};

// The work of one layer and step. Long contexts of few rows are split, so that all threads have something to do; what a
// chunk contributes does not depend on that.
class Work {
 public:
  Work(const HeadShape& shape, Step& step, int threads) : shape_(shape), step_(step) {
    const auto& tasks = step.tasks(tokens());
    for (const AttentionTask& task : tasks) total_ += cost(task) * shape.kv_heads;
    const int64_t worth = std::max(kWorthAThread, total_ / (kPiecesAThread * threads));
    for (const AttentionTask& task : tasks) add(task, threads == 1 ? 1 : cost(task) / worth);
    // The largest first: who takes the last one takes a small one.
    std::stable_sort(pieces.begin(), pieces.end(), [](const Piece& a, const Piece& b) { return a.size() > b.size(); });
    missing_ = std::vector<std::atomic<int64_t>>(splits.size());
    for (const Piece& piece : pieces)
      if (piece.split >= 0) missing_[static_cast<size_t>(piece.split)] += piece.last - piece.first;
  }

  // Rows at once.
  int64_t tokens() const { return std::max<int64_t>(1, kTilesAtOnce * kernels().attention.tile_rows / shape_.group()); }
  int64_t grain() const {
    return std::max<int64_t>(1, kWorthAThread * static_cast<int64_t>(pieces.size()) / std::max<int64_t>(1, total_));
  }
  const Segment& segment(const AttentionTask& task) const { return step_.segments[static_cast<size_t>(task.segment)]; }

  // Whether a piece that has been computed was the last of its split.
  bool completes(const Piece& piece) {
    const int64_t done = piece.last - piece.first;
    return missing_[static_cast<size_t>(piece.split)].fetch_sub(done) == done;
  }

  std::vector<Piece> pieces;
  std::vector<Split> splits;
  int64_t partial_floats = 0;

 private:
  // Multiply-adds of one kv head.
  int64_t cost(const AttentionTask& task) const {
    int64_t context = segment(task).start + task.first + task.count;
    if (shape_.window > 0) context = std::min(context, shape_.window + task.count);
    return 2 * shape_.group() * shape_.head_dim * task.count * context;
  }

  void add(const AttentionTask& task, int64_t wanted_parts) {
    const ChunkRange chunks = chunks_of(shape_, segment(task).start + task.first, task.count);
    const int64_t count = chunks.last - chunks.first, parts = std::clamp<int64_t>(wanted_parts, 1, count);
    for (int64_t kv = 0; kv < shape_.kv_heads; ++kv) {
      const int64_t split = parts > 1 ? static_cast<int64_t>(splits.size()) : -1;
      for (int64_t part = 0; part < parts; ++part)
        pieces.push_back({task, kv, chunks.first + count * part / parts, chunks.first + count * (part + 1) / parts, split});
      if (split < 0) continue;
      splits.push_back({chunks.first, partial_floats});
      partial_floats += count * task.count * shape_.group() * partial_row(shape_);
    }
  }

  const HeadShape& shape_;
  const Step& step_;
  int64_t total_ = 0;
  std::vector<std::atomic<int64_t>> missing_;  // chunks of each split
};

}  // namespace

void Attention::attend(Step& step, const float* queries, const LayerCache& cache, float* out) const {
  static WorkerMemory scratch;
  static Memory apart;
  auto& pool = ThreadPool::instance();
  scratch.reserve(pool.size());
  Work work(shape_, step, pool.size());
  float* partials = apart.at_least(static_cast<size_t>(work.partial_floats));
  const int64_t group = shape_.group(), width = shape_.heads * shape_.head_dim;
  const auto compute = [&](const Piece& piece, float* memory) {
    const Segment& segment = work.segment(piece.task);
    const int64_t row = segment.row + piece.task.first;
    const float* q = queries + (piece.kv_head * step.rows + row) * group * shape_.head_dim;
    QueryGroup rows(shape_, weights_, cache, segment, piece.kv_head, q, piece.task.first, piece.task.count, memory);
    if (piece.split < 0) return rows.run(out + row * width, width);
    const Split& split = work.splits[static_cast<size_t>(piece.split)];
    float* mine = partials + split.partials;
    for (int64_t chunk = piece.first; chunk < piece.last; ++chunk)
      rows.compute(chunk, mine + (chunk - split.first_chunk) * rows.partial_floats());
    if (work.completes(piece)) rows.run(mine, out + row * width, width);
  };
  pool.each(static_cast<int64_t>(work.pieces.size()), work.grain(), [&](int64_t first, int64_t last, int worker) {
    const auto floats = static_cast<size_t>(QueryGroup::scratch_floats(shape_, work.tokens()));
    float* memory = scratch.at_least(worker, floats);
    for (int64_t i = first; i < last; ++i) compute(work.pieces[static_cast<size_t>(i)], memory);
  });
}

}  // namespace mindport
