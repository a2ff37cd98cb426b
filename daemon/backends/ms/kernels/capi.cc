// The C interface for the loader, the runner and the tests. Functions that can fail return a negative number, or a
// null pointer; mp_error() then tells why, per thread.
#include <exception>
#include <string>

#include "matmul.h"
#include "model.h"
#include "table.h"
#include "threadpool.h"
#include "whole_table.h"

#define MP_API extern "C" __attribute__((visibility("default")))

namespace mindport {
namespace {

thread_local std::string last_error;

template <class Body>
int64_t guarded(const Body& body) {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    last_error = "out of memory";
    return -2;
  } catch (const std::exception& error) {
    last_error = error.what();
    return -1;
  }
}

Format checked_float(int64_t format) {
  if (format < 0 || format >= kFloatFormats) throw std::invalid_argument("unknown float format");
  return static_cast<Format>(format);
}

}  // namespace
}  // namespace mindport

using namespace mindport;

MP_API const char* mp_error() { return last_error.c_str(); }
MP_API const char* mp_isa() { return kernels_name(); }
MP_API int64_t mp_select_isa(const char* name) { return select_kernels(name) ? 0 : -1; }
MP_API int64_t mp_threads() { return ThreadPool::instance().size(); }

MP_API int64_t mp_set_threads(int64_t threads) {
  return guarded([&] {
    if (threads < 1) throw std::invalid_argument("at least one thread is needed");
    std::lock_guard<std::mutex> lock(Registry::instance().mutex());
    ThreadPool::instance().resize(static_cast<int>(threads));
    return int64_t{0};
  });
}

// Of activations that meet weights of 8 bits; 0: the quickest. The bits that were selected.
MP_API int64_t mp_select_activation_bits(int64_t bits) {
  return guarded([&] {
    if (bits != 0 && bits != 7 && bits != 8) throw std::invalid_argument("activations have 7 or 8 bits");
    std::lock_guard<std::mutex> lock(Registry::instance().mutex());
    select_activation_bits(bits == 0 ? quickest_activation_bits() : static_cast<int>(bits));
    return static_cast<int64_t>(activation_bits());
  });
}

// Matrices.

// Memory for those to come; of none, what is left of it is given back.
MP_API int64_t mp_reserve(int64_t bytes) {
  return guarded([&] { return Reserve::instance().make(static_cast<size_t>(bytes)), int64_t{0}; });
}

MP_API int64_t mp_reserve_clear() {
  return guarded([&] { return Reserve::instance().clear(), int64_t{0}; });
}

// Columns of a group and the format of scales are for whole numbers.
MP_API int64_t mp_matrix_new(int64_t rows, int64_t cols, int64_t parts, int64_t format, int64_t group, int64_t scales) {
  return guarded([&] {
    if (format < 0 || format >= kFormats) throw std::invalid_argument("unknown weight format");
    const Grouping grouping{group, checked_float(scales)};
    return Registry::instance().add(std::make_shared<Matrix>(rows, cols, parts, static_cast<Format>(format), grouping));
  });
}

MP_API int64_t mp_matrix_free(int64_t handle) {
  return guarded([&] { return Registry::instance().remove_matrix(handle), int64_t{0}; });
}

MP_API int64_t mp_matrix_bytes(int64_t handle) {
  return guarded([&] { return Registry::instance().matrix(handle)->bytes(); });
}

// What packed matrices in a file must agree in with this library.
MP_API int64_t mp_packing_version() { return kPackingVersion; }

MP_API const void* mp_matrix_data(int64_t handle) {
  const void* data = nullptr;
  guarded([&] { return data = Registry::instance().matrix(handle)->data(), int64_t{0}; });
  return data;
}

// Instead of packing: the matrix lies in a file, at a multiple of the page size.
MP_API int64_t mp_matrix_map(int64_t handle, int64_t descriptor, int64_t offset) {
  return guarded([&] {
    return Registry::instance().matrix(handle)->map(static_cast<int>(descriptor), offset), int64_t{0};
  });
}

// How many of the packed elements are infinite or NaN.
MP_API int64_t mp_matrix_pack(int64_t handle, int64_t part, int64_t first, int64_t count, const void* source,
                              int64_t format) {
  return guarded([&] {
    return Registry::instance().matrix(handle)->pack(part, first, count, source, checked_float(format));
  });
}

// Rows that are whole numbers already, as checkpoints pack them.
MP_API int64_t mp_matrix_pack_whole(int64_t handle, int64_t part, int64_t first, int64_t count, const void* source) {
  return guarded([&] {
    return Registry::instance().matrix(handle)->pack_whole(part, first, count, source), int64_t{0};
  });
}

// How many of the scales are infinite or NaN.
MP_API int64_t mp_matrix_pack_scales(int64_t handle, int64_t part, int64_t first, int64_t count, const void* source,
                                     int64_t format) {
  return guarded([&] {
    return Registry::instance().matrix(handle)->pack_scales(part, first, count, source, checked_float(format));
  });
}

// out [m, 16 * panels], padding columns included.
MP_API int64_t mp_matmul(int64_t handle, const float* a, int64_t a_row, int64_t m, float* out) {
  return guarded([&] {
    const auto matrix = Registry::instance().matrix(handle);
    std::lock_guard<std::mutex> lock(Registry::instance().mutex());
    matmul(*matrix, a, a_row, m, out, matrix->panels() * kLanes);
    return int64_t{0};
  });
}

// Models and blocks.

MP_API int64_t mp_model_new(int64_t max_rows, int64_t max_logit_rows, int64_t num_blocks, int64_t cache_format) {
  return guarded([&] {
    if (max_rows < 1 || max_logit_rows < 1 || num_blocks < 1) throw std::invalid_argument("limits must be positive");
    const Limits limits{max_rows, max_logit_rows, num_blocks, kLanes};
    if (cache_format < 0 || cache_format >= kCacheFormats) throw std::invalid_argument("unknown cache format");
    return Registry::instance().add(std::make_unique<Model>(limits, static_cast<Format>(cache_format)));
  });
}

MP_API int64_t mp_model_free(int64_t handle) {
  return guarded([&] { return Registry::instance().remove_model(handle), int64_t{0}; });
}

// shape: kind, hidden, inner, heads, kv heads, head_dim, rotary_dim, window, experts, active experts, renormalise, unit rows;
// reals: eps, scale
MP_API int64_t mp_block_new(int64_t model, const int64_t* shape, const double* reals) {
  return guarded([&] {
    const HeadShape heads{shape[3], shape[4], shape[5], shape[6], shape[7]};
    const BlockShape wanted{static_cast<BlockKind>(shape[0]), shape[1],  shape[2],      heads,
                            shape[8],                         shape[9],  shape[10] != 0, shape[11] != 0,
                            static_cast<float>(reals[0]),     static_cast<float>(reals[1])};
    return Registry::instance().add(std::make_unique<Block>(Registry::instance().model(model), wanted));
  });
}

MP_API int64_t mp_block_set_matrix(int64_t block, int64_t slot, int64_t matrix) {
  return guarded([&] {
    Registry::instance().block(block).matrices.at(static_cast<size_t>(slot)) = Registry::instance().matrix(matrix);
    return int64_t{0};
  });
}

// Sets elements [first, first + count) of a vector of `size`; the others keep their value, or zero.
MP_API int64_t mp_block_set_vector(int64_t block, int64_t slot, int64_t size, int64_t first, int64_t count,
                                   const float* values) {
  return guarded([&] {
    auto& vector = Registry::instance().block(block).vectors.at(static_cast<size_t>(slot));
    if (first < 0 || count < 0 || first + count > size) throw std::out_of_range("elements lie outside the vector");
    vector.resize(static_cast<size_t>(size));
    std::copy(values, values + count, vector.begin() + first);
    return int64_t{0};
  });
}

// The vector's elements, null when there are none; `size` becomes their number.
MP_API const float* mp_block_vector(int64_t block, int64_t slot, int64_t* size) {
  const float* values = nullptr;
  guarded([&] {
    const auto& vector = Registry::instance().block(block).vectors.at(static_cast<size_t>(slot));
    *size = static_cast<int64_t>(vector.size());
    if (!vector.empty()) values = vector.data();
    return int64_t{0};
  });
  return values;
}

// Adapters.

MP_API int64_t mp_adapter_new() {
  return guarded([&] { return Registry::instance().add(std::make_unique<Adapter>()); });
}

// What the adapter adds to a matrix: `down` [reduced, cols] with a scale for each row; for each panel of the matrix
// {first column, columns} of `up`; and `up`, of each panel [16][reduced]. Returns the bytes it takes.
MP_API int64_t mp_adapter_set(int64_t handle, int64_t matrix, int64_t down, int64_t elements, int64_t format,
                              const float* scales, const int64_t* spans, const void* up) {
  return guarded([&] {
    const auto changed = Registry::instance().matrix(matrix);
    LowRank change;
    const auto halved = Registry::instance().matrix(down);
    change.format = checked_float(format);
    if (!is_float(halved->format()) || halved->cols() != changed->cols())
      throw std::invalid_argument("a low-rank change does not fit its matrix");
    change.panels = halved->panels();
    change.cols = halved->cols();
    change.down_format = halved->format();
    const int64_t reduced = halved->rows();
    change.scales.assign(scales, scales + reduced);
    if (elements != changed->panels() * kLanes * reduced) throw std::invalid_argument("U is of another shape than its matrix");
    for (int64_t panel = 0; panel < changed->panels(); ++panel) change.add_span(spans[2 * panel], spans[2 * panel + 1]);
    Adapter& adapter = Registry::instance().adapter(handle);
    change.down = adapter.halves.copy(halved->panel(0), static_cast<size_t>(halved->bytes()));
    change.pack_up(up, adapter.halves);
    const int64_t bytes = halved->bytes() + change.up_bytes();
    adapter.changes[changed.get()] = std::move(change);
    return bytes;
  });
}

MP_API int64_t mp_adapter_free(int64_t handle) {
  return guarded([&] { return Registry::instance().remove_adapter(handle), int64_t{0}; });
}

// Begins a step and returns its serial number, which the operators of the step are given.
MP_API int64_t mp_step(int64_t handle, int64_t segments, const int64_t* shape, const double* rope,
                       const int32_t* tables) {
  return guarded([&] {
    std::lock_guard<std::mutex> lock(Registry::instance().mutex());
    Model& model = Registry::instance().model(handle);
    model.failure.clear();
    ++model.step.serial;
    model.step.set(segments, shape, rope, tables, model.limits);
    begin(model);
    return model.step.serial;
  });
}

// Why an operator of the last step failed; empty when none did.
MP_API const char* mp_failure(int64_t handle) {
  thread_local std::string text;
  const int64_t status = guarded([&] { return text = Registry::instance().model(handle).failure, int64_t{0}; });
  return status < 0 ? last_error.c_str() : text.c_str();
}

MP_API const float* mp_logits(int64_t handle, int64_t* stride) {
  const float* logits = nullptr;
  guarded([&] {
    const Model& model = Registry::instance().model(handle);
    *stride = model.logit_stride;
    logits = model.logits.floats();
    return int64_t{0};
  });
  return logits;
}

MP_API const int64_t* mp_likeliest(int64_t handle) {
  const int64_t* likeliest = nullptr;
  guarded([&] {
    likeliest = Registry::instance().model(handle).likeliest.data();
    return int64_t{0};
  });
  return likeliest;
}

MP_API int64_t mp_copy_block(int64_t handle, int64_t from, int64_t to) {
  return guarded([&] {
    std::lock_guard<std::mutex> lock(Registry::instance().mutex());
    const Model& model = Registry::instance().model(handle);
    if (std::min(from, to) < 0 || std::max(from, to) >= model.limits.num_blocks)
      throw std::out_of_range("no such KV block");
    for (Block* block : model.blocks)
      if (block->cache) block->cache->copy(from, to);
    return int64_t{0};
  });
}

// Single blocks and kernels, for tests: x and out are [rows of the step, hidden].

MP_API int64_t mp_run_block(int64_t handle, const void* in, float* out) {
  return guarded([&] {
    std::lock_guard<std::mutex> lock(Registry::instance().mutex());
    Block& block = Registry::instance().block(handle);
    const auto* x = static_cast<const float*>(in);
    switch (block.shape.kind) {
      case BlockKind::embedding: embed(block, static_cast<const int32_t*>(in), out); break;
      case BlockKind::attention: attention_block(block, x, out); break;
      case BlockKind::feed_forward: feed_forward(block, x, out); break;
      case BlockKind::head: head(block, x); break;
      case BlockKind::mixture: mixture(block, x, out); break;
    }
    return int64_t{0};
  });
}

MP_API void mp_rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out) {
  kernels().rms_norm(x, weight, eps, n, out);
}
MP_API void mp_exp(const float* x, int64_t n, float* out) { kernels().exp(x, n, out); }
MP_API void mp_silu(const float* x, int64_t n, float* out) { kernels().silu(x, n, out); }
// scores [n, rounded up to 16] become weights that do not yet sum to one; the sum is returned
MP_API float mp_softmax(float* scores, int64_t n) { return kernels().attention.softmax(scores, n, round_up(n, 16)).total; }
MP_API int64_t mp_finite(const float* x, int64_t n) { return kernels().finite(x, n) ? 1 : 0; }
