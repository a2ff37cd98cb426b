// A model: blocks with their weights and caches, the current step, the logits of the last one.
#pragma once

#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "attention.h"
#include "low_rank.h"
#include "matrix.h"
#include "step.h"
#include "threadpool.h"

namespace mindport {

enum class BlockKind : int64_t { embedding = 0, attention = 1, feed_forward = 2, head = 3, mixture = 4 };

// Weight slots of the kinds of block; vectors that are absent are empty.
enum MatrixSlot { table_matrix = 0, qkv_matrix = 0, gate_up_matrix = 0, router_matrix = 0, out_matrix = 1, matrix_slots = 2 };
enum VectorSlot {
  norm_vector = 0,
  in_bias = 1,
  out_bias = 2,
  up_bias = 3,
  slopes_vector = 4,
  query_norm = 5,
  key_norm = 6,
  rotary_factors = 7,
  row_factors = 1,  // of a head
  vector_slots = 8
};
// Each expert of a mixture has a set of these slots of its own, after those of the block.
constexpr int matrix_slot(int64_t expert, int slot) { return static_cast<int>(matrix_slots * (expert + 1)) + slot; }
constexpr int vector_slot(int64_t expert, int slot) { return static_cast<int>(vector_slots * (expert + 1)) + slot; }

struct BlockShape {
  BlockKind kind;
  int64_t hidden;
  int64_t inner;        // vocabulary, or width of a feed-forward
  HeadShape heads;
  int64_t experts;
  int64_t active;       // experts a row is sent to
  bool renormalise;     // the shares of the active experts sum to one
  bool unit_rows;       // of a head: its rows count as divided by their lengths
  float eps;
  float scale;          // of the embedding, of a residual branch, of the logits
};

class Model;

struct Block {
  Block(Model& owner, const BlockShape& shape);

  Model* model;
  BlockShape shape;
  std::vector<std::shared_ptr<Matrix>> matrices;
  std::vector<std::vector<float>> vectors;
  std::unique_ptr<LayerCache> cache;
  bool followed = false;  // by an attention of the same step, which may see any of its rows
  bool last = false;      // never followed: only rows that want logits matter

  // Columns of the output projection.
  int64_t width() const { return shape.kind == BlockKind::attention ? shape.heads.heads * shape.heads.head_dim : shape.inner; }
  const Matrix& matrix(int slot, int64_t rows, int64_t cols, int64_t parts = 1) const;
  const std::vector<float>& vector(int slot, int64_t size) const;            // must be there
  const std::vector<float>& vector_or_empty(int slot, int64_t size) const;
  const float* optional_vector(int slot, int64_t size) const;                // or null
};

// What a block computes: the rows of a step, which may be some of those that its input and output have.
struct Rows {
  Step& step;
  const std::vector<AdapterRun>& adapted;  // those that use adapters
  const int64_t* places;                   // of each row in input and output; null: their own

  int64_t count() const { return step.rows; }
  int64_t place(int64_t row) const { return places == nullptr ? row : places[row]; }
};

// The order in which a step reads weights: as the last one did, but for experts. Where it differs, nothing is expected.
class ReadOrder {
 public:
  void begin() { next_ = 0; }
  // These are read now: tells the thread pool what comes after them.
  void reads(const Matrix& weights);

 private:
  std::vector<MemoryRange> ranges_;
  size_t next_ = 0;
};

class Model {
 public:
  Model(const Limits& limits, Format cache_format) : limits(limits), cache_format(cache_format) {}

  Limits limits;
  Format cache_format;    // of keys and values
  Step step, wanted;      // wanted: the rows of the step that want logits
  std::vector<Block*> blocks;
  std::vector<Block*> since_attention;  // blocks computed in this step since its latest attention, and that one
  std::string failure;    // of the current step; its remaining operators then do nothing
  Memory logits;          // [max_logit_rows][padded vocabulary]
  int64_t logit_stride = 0;
  std::vector<int64_t> likeliest;  // token of each row of logits; of no use where they are not finite

  ReadOrder order;
  std::vector<AdapterRun> adapted, adapted_wanted;  // rows of either that use adapters

  Rows all_rows() { return {step, adapted, nullptr}; }
  Rows wanted_rows() { return {wanted, adapted_wanted, step.logit_rows.data()}; }

  struct Scratch {
    Memory norm, projected, queries, attended, scores, mixed, reduced;
  } scratch;
};

void embed(Block& block, const int32_t* tokens, float* out);
void attention_block(Block& block, const float* x, float* out);
void feed_forward(Block& block, const float* x, float* out);
void head(Block& block, const float* x);
void mixture(Block& block, const float* x, float* out);

// Begins the step that model.step describes. Throws std::invalid_argument for an adapter that does not exist.
void begin(Model& model);

// Handles by which operators and callers name models, blocks, matrices and adapters.
class Registry {
 public:
  static Registry& instance();
  std::mutex& mutex() { return mutex_; }  // held by every operator: one computes at a time

  int64_t add(std::unique_ptr<Model> model);
  int64_t add(std::unique_ptr<Block> block);
  int64_t add(std::shared_ptr<Matrix> matrix);
  int64_t add(std::unique_ptr<Adapter> adapter);
  Model& model(int64_t handle);
  Block& block(int64_t handle);
  std::shared_ptr<Matrix> matrix(int64_t handle);
  Adapter& adapter(int64_t handle);
  void remove_model(int64_t handle);  // with its blocks
  void remove_matrix(int64_t handle);
  void remove_adapter(int64_t handle);

 private:
  std::mutex mutex_, table_mutex_;
  int64_t next_ = 1;
  std::map<int64_t, std::unique_ptr<Model>> models_;
  std::map<int64_t, std::unique_ptr<Block>> blocks_;
  std::map<int64_t, std::shared_ptr<Matrix>> matrices_;
  std::map<int64_t, std::unique_ptr<Adapter>> adapters_;
};

}  // namespace mindport
