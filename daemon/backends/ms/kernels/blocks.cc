// The fused blocks of a decoder, computed for the rows of the current step.
#include <algorithm>
#include <stdexcept>

#include "matmul.h"
#include "model.h"
#include "table.h"
#include "threadpool.h"

namespace mindport {
namespace {

void norm_rows(const float* x, int64_t rows, const std::vector<float>& weight, float eps, float* out) {
  const auto width = static_cast<int64_t>(weight.size());
  const KernelTable& table = kernels();
  ThreadPool::instance().each(rows, 4, [&](int64_t first, int64_t last, int) {
    for (int64_t r = first; r < last; ++r)
      table.rms_norm(x + r * width, weight.data(), eps, width, out + r * width);
  });
}

void add_bias(const Region& region, const float* bias, int64_t columns, float* c, int64_t c_row) {
  const int64_t first = region.panel0 * kLanes, n = std::min(columns, region.panel1 * kLanes) - first;
  for (int64_t r = region.row0; r < region.row1; ++r)
    kernels().add(c + r * c_row + first, bias + first, n, c + r * c_row + first);
}

// out = x + scale * (a W^T + bias), all [rows, hidden].
void project_residual(const Block& block, const float* a, int64_t a_row, const float* x, float* out) {
  Model& model = *block.model;
  const int64_t hidden = block.shape.hidden, rows = model.step.rows;
  const Matrix& weights = block.matrix(out_matrix, hidden, a_row);
  const float* bias = block.optional_vector(out_bias, hidden);
  const int64_t stride = weights.panels() * kLanes;
  float* delta = model.scratch.delta.at_least(static_cast<size_t>(rows * stride));
  matmul(weights, a, a_row, rows, delta, stride, [&](const Region& region) {
    if (bias != nullptr) add_bias(region, bias, hidden, delta, stride);
    const int64_t first = region.panel0 * kLanes, n = std::min(hidden, region.panel1 * kLanes) - first;
    for (int64_t r = region.row0; r < region.row1; ++r)
      kernels().residual(x + r * hidden + first, delta + r * stride + first, block.shape.scale, n,
                         out + r * hidden + first);
  });
}

}  // namespace

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

const float* Block::optional_vector(int slot, int64_t size) const {
  const auto& v = vectors[static_cast<size_t>(slot)];
  if (v.empty()) return nullptr;
  if (static_cast<int64_t>(v.size()) != size) throw std::runtime_error("a bias of a block has the wrong size");
  return v.data();
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

void attention_block(Block& block, const float* x, float* out) {
  Model& model = *block.model;
  Step& step = model.step;
  const BlockShape& shape = block.shape;
  const HeadShape& heads = shape.heads;
  const int64_t width = (heads.heads + 2 * heads.kv_heads) * heads.head_dim;
  const Matrix& weights = block.matrix(qkv_matrix, width, shape.hidden);
  const float* bias = block.optional_vector(in_bias, width);
  const int64_t stride = weights.panels() * kLanes, inner = heads.heads * heads.head_dim;
  if (!block.cache) block.cache = std::make_unique<LayerCache>(heads, model.limits.num_blocks, model.cache_format);

  float* norm = model.scratch.norm.at_least(static_cast<size_t>(step.rows * shape.hidden));
  float* projected = model.scratch.wide.at_least(static_cast<size_t>(step.rows * stride));
  float* queries = model.scratch.queries.at_least(static_cast<size_t>(step.rows * inner));
  float* attended = model.scratch.attended.at_least(static_cast<size_t>(step.rows * inner));
  norm_rows(x, step.rows, block.vector(norm_vector, shape.hidden), shape.eps, norm);
  matmul(weights, norm, shape.hidden, step.rows, projected, stride, [&](const Region& region) {
    if (bias != nullptr) add_bias(region, bias, width, projected, stride);
  });
  block.optional_vector(slopes_vector, heads.heads);
  const Attention attention(heads, block.vectors[slopes_vector]);
  attention.scatter(step, projected, stride, queries, *block.cache);
  attention.attend(step, queries, *block.cache, attended);
  project_residual(block, attended, inner, x, out);
}

void feed_forward(Block& block, const float* x, float* out) {
  Model& model = *block.model;
  const BlockShape& shape = block.shape;
  const int64_t rows = model.step.rows;
  const Matrix& weights = block.matrix(gate_up_matrix, shape.inner, shape.hidden, 2);
  const float* gate_bias = block.optional_vector(in_bias, shape.inner);
  const float* up = block.optional_vector(up_bias, shape.inner);
  const int64_t stride = weights.panels() * kLanes;
  float* norm = model.scratch.norm.at_least(static_cast<size_t>(rows * shape.hidden));
  float* wide = model.scratch.wide.at_least(static_cast<size_t>(rows * stride));
  float* activated = model.scratch.attended.at_least(static_cast<size_t>(rows * shape.inner));
  norm_rows(x, rows, block.vector(norm_vector, shape.hidden), shape.eps, norm);
  matmul(weights, norm, shape.hidden, rows, wide, stride, [&](const Region& region) {
    const KernelTable& table = kernels();
    for (int64_t r = region.row0; r < region.row1; ++r) {
      for (int64_t panel = region.panel0; panel < region.panel1; panel += 2) {
        float* g = wide + r * stride + panel * kLanes;
        float* u = g + kLanes;
        const int64_t column = panel / 2 * kLanes, n = std::min(kLanes, shape.inner - column);
        if (gate_bias != nullptr) table.add(g, gate_bias + column, n, g);
        if (up != nullptr) table.add(u, up + column, n, u);
        table.swiglu(g, u, n, activated + r * shape.inner + column);
      }
    }
  });
  project_residual(block, activated, shape.inner, x, out);
}

void head(Block& block, const float* x) {
  Model& model = *block.model;
  const BlockShape& shape = block.shape;
  const auto& wanted = model.step.logit_rows;
  const auto rows = static_cast<int64_t>(wanted.size());
  const Matrix& weights = block.matrix(table_matrix, shape.inner, shape.hidden);
  const auto& norm_weight = block.vector(norm_vector, shape.hidden);
  const int64_t stride = model.logit_stride = weights.panels() * kLanes;
  float* logits = model.logits.at_least(static_cast<size_t>(model.limits.max_logit_rows * stride));
  if (rows == 0) return;
  float* norm = model.scratch.norm.at_least(static_cast<size_t>(rows * shape.hidden));
  for (int64_t i = 0; i < rows; ++i)
    kernels().rms_norm(x + wanted[static_cast<size_t>(i)] * shape.hidden, norm_weight.data(), shape.eps, shape.hidden,
                       norm + i * shape.hidden);
  std::atomic<int64_t> broken{-1};
  matmul(weights, norm, shape.hidden, rows, logits, stride, [&](const Region& region) {
    const int64_t first = region.panel0 * kLanes, n = std::min(shape.inner, region.panel1 * kLanes) - first;
    for (int64_t r = region.row0; r < region.row1; ++r) {
      float* row = logits + r * stride + first;
      if (shape.scale != 1.0f) kernels().scale(shape.scale, n, row);
      if (!kernels().finite(row, n)) broken = r;
    }
  });
  if (broken >= 0)
    throw std::runtime_error("the logits of segment " +
                             std::to_string(model.step.segment_of(wanted[static_cast<size_t>(broken.load())])) +
                             " hold NaN or infinite values");
}

}  // namespace mindport
