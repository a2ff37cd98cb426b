// The fused blocks of a decoder, computed for the rows of the current step.
#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <vector>

#include "matmul.h"
#include "model.h"
#include "table.h"
#include "threadpool.h"

namespace mindport {
namespace {

// The norms of `rows`, one after the other.
void norm_rows(const float* x, const Rows& rows, const std::vector<float>& weight, float eps, float* out) {
  const auto width = static_cast<int64_t>(weight.size());
  const KernelTable& table = kernels();
  ThreadPool::instance().each(rows.count(), 4, [&](int64_t first, int64_t last, int) {
    for (int64_t r = first; r < last; ++r)
      table.rms_norm(x + rows.place(r) * width, weight.data(), eps, width, out + r * width);
  });
}

// Rows that a block's output needs. After the last attention, only those that want logits are ever read: in a long
// prompt, one of them. The others are left as they are.
Rows rows_of(const Block& block) { return block.last ? block.model->wanted_rows() : block.model->all_rows(); }

void add_bias(const Region& region, const float* bias, int64_t columns) {
  const int64_t first = region.panel0 * kLanes, n = std::min(columns, region.panel1 * kLanes) - first;
  for (int64_t r = region.row0; r < region.row1; ++r) kernels().add(region.row(r), bias + first, n, region.row(r));
}

constexpr int64_t kItself = -1;  // in place of an expert: the block's own weights

// Rows that use adapters. Experts have none: their rows are not the step's.
const std::vector<AdapterRun>& adapted_rows(const Block& block, int64_t expert) {
  static const std::vector<AdapterRun> none;
  return expert == kItself ? rows_of(block).adapted : none;
}

// silu(gate) * up of rows [rows][hidden]: [rows][inner].
const float* activate(Block& block, int64_t expert, const float* in, int64_t rows) {
  Model::Scratch& scratch = block.model->scratch;
  const int64_t inner = block.shape.inner, hidden = block.shape.hidden;
  const Matrix& weights = block.matrix(matrix_slot(expert, gate_up_matrix), inner, hidden, 2);
  const float* gate_bias = block.optional_vector(vector_slot(expert, in_bias), inner);
  const float* up = block.optional_vector(vector_slot(expert, up_bias), inner);
  float* activated = scratch.attended.at_least(static_cast<size_t>(rows * inner));
  const Correction correction(adapted_rows(block, expert), weights, in, hidden, scratch.reduced);
  block.model->order.reads(weights);
  matmul(weights, in, hidden, rows, nullptr, 0, [&](const Region& region) {
    const KernelTable& table = kernels();
    correction.add(region);
    const int64_t first = region.panel0 / 2 * kLanes, last = std::min(inner, region.panel1 / 2 * kLanes);
    for (int64_t r = region.row0; r < region.row1; ++r) {
      float* pairs = region.row(r);
      for (int64_t column = first; column < last; column += kLanes) {
        float* pair = pairs + 2 * (column - first);
        const int64_t n = std::min(kLanes, last - column);
        if (gate_bias != nullptr) table.add(pair, gate_bias + column, n, pair);
        if (up != nullptr) table.add(pair + kLanes, up + column, n, pair + kLanes);
      }
      table.swiglu(pairs, last - first, activated + r * inner + first);
    }
  });
  return activated;
}

// Calls take(row, first, n, delta) for every piece of rows a W^T + bias, delta being its columns [first, first + n).
template <class Take>
void project(Block& block, int64_t expert, const float* a, int64_t rows, const Take& take) {
  const int64_t hidden = block.shape.hidden, width = block.width();
  const Matrix& weights = block.matrix(matrix_slot(expert, out_matrix), hidden, width);
  const float* bias = block.optional_vector(vector_slot(expert, out_bias), hidden);
  const Correction correction(adapted_rows(block, expert), weights, a, width, block.model->scratch.reduced);
  block.model->order.reads(weights);
  matmul(weights, a, width, rows, nullptr, 0, [&](const Region& region) {
    correction.add(region);
    if (bias != nullptr) add_bias(region, bias, hidden);
    const int64_t first = region.panel0 * kLanes, n = std::min(hidden, region.panel1 * kLanes) - first;
    for (int64_t r = region.row0; r < region.row1; ++r) take(r, first, n, region.row(r));
  });
}

// out = x + scale * (a W^T + bias), `a` having the block's rows one after the other.
void project_residual(Block& block, const float* a, const float* x, float* out) {
  const int64_t hidden = block.shape.hidden;
  const Rows rows = rows_of(block);
  project(block, kItself, a, rows.count(), [&](int64_t row, int64_t first, int64_t n, const float* delta) {
    const int64_t at = rows.place(row) * hidden + first;
    kernels().residual(x + at, delta, block.shape.scale, n, out + at);
  });
}

// A row that an expert is to compute, and the share its result has.
struct Visit {
  int64_t row;
  float share;
};

// The rows of every expert: each row's `active` likeliest, the earlier of equals, by softmax over all of them.
std::vector<std::vector<Visit>> route(Block& block, const float* norm, int64_t rows) {
  const BlockShape& shape = block.shape;
  const Matrix& router = block.matrix(router_matrix, shape.experts, shape.hidden);
  const int64_t stride = router.panels() * kLanes;
  float* scores = block.model->scratch.scores.at_least(static_cast<size_t>(rows * stride));
  block.model->order.reads(router);
  matmul(router, norm, shape.hidden, rows, scores, stride);
  std::vector<std::vector<Visit>> visits(static_cast<size_t>(shape.experts));
  std::vector<int64_t> order(static_cast<size_t>(shape.experts));
  for (int64_t r = 0; r < rows; ++r) {
    float* share = scores + r * stride;
    const float total = kernels().attention.softmax(share, shape.experts, stride).total;
    for (int64_t e = 0; e < shape.experts; ++e) {
      share[e] = share[e] / total;
      order[static_cast<size_t>(e)] = e;
    }
    const auto chosen = order.begin() + shape.active;
    // Comparing with NaN would be no order at all: such a row goes anywhere, and stays NaN by its shares.
    if (kernels().finite(share, shape.experts))
      std::partial_sort(order.begin(), chosen, order.end(), [&](int64_t a, int64_t b) {
        return share[a] != share[b] ? share[a] > share[b] : a < b;
      });
    float sum = 1.0f;
    if (shape.renormalise && shape.active > 1) {
      sum = 1e-9f;
      for (auto e = order.begin(); e != chosen; ++e) sum += share[*e];
    }
    for (auto e = order.begin(); e != chosen; ++e) visits[static_cast<size_t>(*e)].push_back({r, share[*e] / sum});
  }
  return visits;
}

}  // namespace

Block::Block(Model& owner, const BlockShape& wanted) : model(&owner), shape(wanted) {
  const HeadShape& heads = shape.heads;
  if (shape.kind == BlockKind::attention) {
    if (heads.heads < 1 || heads.kv_heads < 1 || heads.head_dim < 1 || heads.heads % heads.kv_heads != 0)
      throw std::invalid_argument("the heads must be a multiple of the kv heads");
    if (heads.rotary_dim < 0 || heads.rotary_dim > heads.head_dim || heads.rotary_dim % 2 != 0)
      throw std::invalid_argument("the rotary dimension must be even and at most the head dimension");
    if (heads.window < 0) throw std::invalid_argument("the window must not be negative");
    cache = std::make_unique<LayerCache>(heads, model->limits.num_blocks, model->cache_format);
  }
  const bool mixes = shape.kind == BlockKind::mixture;
  if (mixes && (shape.active < 1 || shape.active > shape.experts))
    throw std::invalid_argument("the active experts must be at least one and at most all");
  const int64_t experts = mixes ? shape.experts : 0;
  matrices.resize(static_cast<size_t>(matrix_slot(experts, 0)));
  vectors.resize(static_cast<size_t>(vector_slot(experts, 0)));
}

const Matrix& Block::matrix(int slot, int64_t rows, int64_t cols, int64_t parts) const {
  const auto& m = matrices[static_cast<size_t>(slot)];
  if (!m) throw std::runtime_error("a block lacks a weight matrix");
  if (m->rows() != rows || m->cols() != cols || m->parts() != parts)
    throw std::runtime_error("a weight matrix of a block has the wrong shape");
  return *m;
}

const std::vector<float>& Block::vector(int slot, int64_t size) const {
  const auto& v = vectors[static_cast<size_t>(slot)];
  if (static_cast<int64_t>(v.size()) != size) throw std::runtime_error("a block lacks a norm of the right size");
  return v;
}

const std::vector<float>& Block::vector_or_empty(int slot, int64_t size) const {
  const auto& v = vectors[static_cast<size_t>(slot)];
  if (!v.empty() && static_cast<int64_t>(v.size()) != size)
    throw std::runtime_error("a vector of a block has the wrong size");
  return v;
}

const float* Block::optional_vector(int slot, int64_t size) const {
  const auto& v = vector_or_empty(slot, size);
  return v.empty() ? nullptr : v.data();
}

static std::vector<AdapterRun> adapters_of(const Step& step) {
  std::vector<AdapterRun> runs;
  for (const Segment& s : step.segments) {
    if (s.adapter == 0) continue;
    const Adapter* adapter = &Registry::instance().adapter(s.adapter);
    if (!runs.empty() && runs.back().last == s.row && runs.back().adapter == adapter) runs.back().last += s.count;
    else runs.push_back({s.row, s.row + s.count, adapter});
  }
  return runs;
}

void ReadOrder::reads(const Matrix& weights) {
  const MemoryRange now{static_cast<const char*>(weights.data()), weights.bytes()};
  if (next_ == ranges_.size()) ranges_.emplace_back();
  const bool as_before = ranges_[next_].data == now.data;
  ranges_[next_++] = now;
  ThreadPool::instance().announce(as_before ? ranges_[next_ % ranges_.size()] : MemoryRange{});
}

void begin(Model& model) {
  model.order.begin();
  model.wanted = model.step.wanted();
  model.adapted = adapters_of(model.step);
  model.adapted_wanted = adapters_of(model.wanted);
  model.since_attention.clear();
}

void embed(Block& block, const int32_t* tokens, float* out) {
  const int64_t hidden = block.shape.hidden;
  const Matrix& table = block.matrix(table_matrix, block.shape.inner, hidden);
  const int64_t rows = block.model->step.rows;
  for (int64_t r = 0; r < rows; ++r)
    if (tokens[r] < 0 || tokens[r] >= block.shape.inner)
      throw std::invalid_argument("token " + std::to_string(tokens[r]) + " is not in the vocabulary");
  ThreadPool::instance().each(rows, 4, [&](int64_t first, int64_t last, int) {
    for (int64_t r = first; r < last; ++r) {
      table.copy_row(tokens[r], out + r * hidden);
      if (block.shape.scale != 1.0f) kernels().scale(block.shape.scale, hidden, out + r * hidden);
    }
  });
}

// Queries [kv head][row of the step][..] become those of `rows`.
static void gather_queries(const Step& step, const Rows& rows, const HeadShape& heads, float* queries) {
  if (rows.count() == step.rows) return;
  const int64_t width = heads.group() * heads.head_dim;
  for (int64_t kv = 0; kv < heads.kv_heads; ++kv)
    for (int64_t r = 0; r < rows.count(); ++r)
      std::memmove(queries + (kv * rows.count() + r) * width, queries + (kv * step.rows + rows.place(r)) * width,
                   static_cast<size_t>(width) * sizeof(float));
}

void attention_block(Block& block, const float* x, float* out) {
  Model& model = *block.model;
  Step& step = model.step;
  const BlockShape& shape = block.shape;
  const HeadShape& heads = shape.heads;
  const int64_t width = (heads.heads + 2 * heads.kv_heads) * heads.head_dim;
  const Matrix& weights = block.matrix(qkv_matrix, width, shape.hidden);
  const float* bias = block.optional_vector(in_bias, width);
  const int64_t stride = weights.panels() * kLanes, inner = heads.heads * heads.head_dim;
  float* norm = model.scratch.norm.at_least(static_cast<size_t>(step.rows * shape.hidden));
  float* projected = model.scratch.projected.at_least(static_cast<size_t>(step.rows * stride));
  float* queries = model.scratch.queries.at_least(static_cast<size_t>(step.rows * inner));
  float* attended = model.scratch.attended.at_least(static_cast<size_t>(step.rows * inner));
  norm_rows(x, model.all_rows(), block.vector(norm_vector, shape.hidden), shape.eps, norm);
  const Correction correction(model.adapted, weights, norm, shape.hidden, model.scratch.reduced);
  model.order.reads(weights);
  matmul(weights, norm, shape.hidden, step.rows, projected, stride, [&](const Region& region) {
    correction.add(region);
    if (bias != nullptr) add_bias(region, bias, width);
  });
  const int64_t half = heads.rotary_dim / 2;
  const HeadWeights extras{block.vector_or_empty(slopes_vector, heads.heads), block.optional_vector(query_norm, heads.head_dim),
                           block.optional_vector(key_norm, heads.head_dim), shape.eps,
                           block.vector_or_empty(rotary_factors, half)};
  const Attention attention(heads, extras);
  attention.scatter(step, projected, stride, queries, *block.cache);
  const Rows rows = rows_of(block);
  gather_queries(step, rows, heads, queries);
  attention.attend(rows.step, queries, *block.cache, attended);
  project_residual(block, attended, x, out);
  for (Block* other : model.since_attention) other->followed = true;
  model.since_attention.assign(1, &block);
}

void feed_forward(Block& block, const float* x, float* out) {
  Model& model = *block.model;
  const BlockShape& shape = block.shape;
  const Rows rows = rows_of(block);
  float* norm = model.scratch.norm.at_least(static_cast<size_t>(rows.count() * shape.hidden));
  norm_rows(x, rows, block.vector(norm_vector, shape.hidden), shape.eps, norm);
  project_residual(block, activate(block, kItself, norm, rows.count()), x, out);
  model.since_attention.push_back(&block);
}

void mixture(Block& block, const float* x, float* out) {
  Model& model = *block.model;
  const BlockShape& shape = block.shape;
  const Rows wanted = rows_of(block);
  const int64_t rows = wanted.count(), hidden = shape.hidden;
  float* norm = model.scratch.norm.at_least(static_cast<size_t>(rows * hidden));
  norm_rows(x, wanted, block.vector(norm_vector, hidden), shape.eps, norm);
  const auto chosen = route(block, norm, rows);

  // Expert by expert, so that each one's weights are read once; a row's branches are always added in that order.
  float* mixed = model.scratch.mixed.at_least(static_cast<size_t>(2 * rows * hidden));
  float* gathered = mixed + rows * hidden;
  std::fill(mixed, mixed + rows * hidden, 0.0f);
  for (int64_t expert = 0; expert < shape.experts; ++expert) {
    const auto& visits = chosen[static_cast<size_t>(expert)];
    const auto count = static_cast<int64_t>(visits.size());
    if (count == 0) continue;
    const float* input = norm;
    if (count < rows) {
      for (int64_t i = 0; i < count; ++i)
        std::copy_n(norm + visits[static_cast<size_t>(i)].row * hidden, hidden, gathered + i * hidden);
      input = gathered;
    }
    const float* activated = activate(block, expert, input, count);
    project(block, expert, activated, count, [&](int64_t row, int64_t first, int64_t n, const float* delta) {
      const Visit& visit = visits[static_cast<size_t>(row)];
      float* sum = mixed + visit.row * hidden + first;
      kernels().residual(sum, delta, visit.share, n, sum);
    });
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = wanted.place(r) * hidden;
    kernels().residual(x + at, mixed + r * hidden, shape.scale, hidden, out + at);
  }
  model.since_attention.push_back(&block);
}

// One over the length of each row of the table, computed once.
static const float* inverse_lengths(Block& block, const Matrix& table) {
  auto& lengths = block.vectors[row_factors];
  if (lengths.empty()) {
    lengths.resize(static_cast<size_t>(table.rows()));
    ThreadPool::instance().each(table.panels(), 1, [&](int64_t first, int64_t last, int) {
      std::vector<float> row(static_cast<size_t>(table.cols()));
      for (int64_t r = first * kLanes; r < std::min(table.rows(), last * kLanes); ++r) {
        table.copy_row(r, row.data());
        double squares = 0.0;
        for (const float value : row) squares += static_cast<double>(value) * value;
        lengths[static_cast<size_t>(r)] = static_cast<float>(1.0 / std::max(std::sqrt(squares), 1e-12));
      }
    });
  }
  return lengths.data();
}

// The largest of a row's logits that threads find in parts of it, the first of equals.
class Likeliest {
 public:
  void offer(float logit, int64_t token) {
    const uint64_t mine = static_cast<uint64_t>(ordered(logit)) << 32 | (kLast - static_cast<uint64_t>(token));
    for (uint64_t best = best_.load(std::memory_order_relaxed); mine > best;)
      if (best_.compare_exchange_weak(best, mine, std::memory_order_relaxed)) return;
  }
  int64_t token() const { return static_cast<int64_t>(kLast - (best_.load() & kLast)); }

 private:
  static constexpr uint64_t kLast = 0xffffffff;

  // Whole numbers in the order of floats.
  static uint32_t ordered(float x) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    return bits >> 31 ? ~bits : bits | 0x80000000u;
  }

  std::atomic<uint64_t> best_{0};
};

void head(Block& block, const float* x) {
  Model& model = *block.model;
  const BlockShape& shape = block.shape;
  // The graph is the same in every step: what no attention follows now, none ever does.
  for (Block* other : model.since_attention) other->last = !other->followed;
  const Rows wanted = model.wanted_rows();
  const int64_t rows = wanted.count();
  const Matrix& weights = block.matrix(table_matrix, shape.inner, shape.hidden);
  const auto& norm_weight = block.vector(norm_vector, shape.hidden);
  const int64_t stride = model.logit_stride = weights.panels() * kLanes;
  float* logits = model.logits.at_least(static_cast<size_t>(model.limits.max_logit_rows * stride));
  if (rows == 0) return;
  float* norm = model.scratch.norm.at_least(static_cast<size_t>(rows * shape.hidden));
  norm_rows(x, wanted, norm_weight, shape.eps, norm);
  const float* lengths = shape.unit_rows ? inverse_lengths(block, weights) : nullptr;
  std::vector<std::atomic<bool>> broken(static_cast<size_t>(rows));
  std::vector<Likeliest> best(static_cast<size_t>(rows));
  const Correction correction(wanted.adapted, weights, norm, shape.hidden, model.scratch.reduced);
  model.order.reads(weights);
  matmul(weights, norm, shape.hidden, rows, logits, stride, [&](const Region& region) {
    correction.add(region);
    const int64_t first = region.panel0 * kLanes, n = std::min(shape.inner, region.panel1 * kLanes) - first;
    for (int64_t r = region.row0; r < region.row1; ++r) {
      float* row = region.row(r);
      if (shape.scale != 1.0f) kernels().scale(shape.scale, n, row);
      if (lengths != nullptr)
        for (int64_t i = 0; i < n; ++i) row[i] *= lengths[first + i];
      if (!kernels().finite(row, n)) broken[static_cast<size_t>(r)].store(true, std::memory_order_relaxed);
      const int64_t largest = kernels().largest(row, n);
      best[static_cast<size_t>(r)].offer(row[largest], first + largest);
    }
  });
  // A row that is not finite throughout is marked where its reader looks first: its maximum is NaN.
  for (int64_t r = 0; r < rows; ++r)
    if (broken[static_cast<size_t>(r)]) logits[r * stride] = NAN;
  model.likeliest.clear();
  for (const Likeliest& row : best) model.likeliest.push_back(row.token());
}

}  // namespace mindport
