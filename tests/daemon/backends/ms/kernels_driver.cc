// Runs every kernel on made-up numbers and writes what comes out, so that two machines can be compared bit for bit.
//   driver                    prints the instruction set that this processor gets
//   driver NAME FILE          computes with instruction set NAME; exits with 3 when the processor lacks it
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

extern "C" {
const char* mp_error();
const char* mp_isa();
int64_t mp_select_isa(const char*);
int64_t mp_set_threads(int64_t);
int64_t mp_matrix_new(int64_t rows, int64_t cols, int64_t parts, int64_t format, int64_t group, int64_t scales);
int64_t mp_matrix_free(int64_t);
int64_t mp_matrix_pack(int64_t, int64_t part, int64_t first, int64_t count, const void*, int64_t format);
int64_t mp_matrix_pack_whole(int64_t, int64_t part, int64_t first, int64_t count, const void*);
int64_t mp_matmul(int64_t, const float* a, int64_t a_row, int64_t m, float* out);
int64_t mp_model_new(int64_t max_rows, int64_t max_logit_rows, int64_t num_blocks, int64_t cache_format);
int64_t mp_model_free(int64_t);
int64_t mp_block_new(int64_t model, const int64_t* shape, const double* reals);
int64_t mp_block_set_matrix(int64_t block, int64_t slot, int64_t matrix);
int64_t mp_block_set_vector(int64_t block, int64_t slot, int64_t size, int64_t first, int64_t count, const float*);
int64_t mp_step(int64_t, int64_t segments, const int64_t* shape, const double* rope, const int32_t* tables);
const float* mp_logits(int64_t, int64_t* stride);
int64_t mp_run_block(int64_t, const void* in, float* out);
void mp_rms_norm(const float* x, const float* weight, float eps, int64_t n, float* out);
void mp_exp(const float* x, int64_t n, float* out);
void mp_silu(const float* x, int64_t n, float* out);
float mp_softmax(float* scores, int64_t n);
int64_t mp_finite(const float* x, int64_t n);
}

namespace {

using Floats = std::vector<float>;
enum Format { float32, bfloat16, float16, int8, int4 };
const char* const format_names[] = {"float32", "bfloat16", "float16", "int8", "int4"};

int64_t check(int64_t status) {
  if (status >= 0) return status;
  std::fprintf(stderr, "%s\n", mp_error());
  std::exit(1);
}

// The same numbers on every machine: whole ones, scaled.
class Numbers {
 public:
  explicit Numbers(uint64_t seed) : state_(seed * 2654435761u + 88172645463325252u) {}
  float one() {
    state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
    return static_cast<float>(static_cast<int32_t>(state_ >> 40) - (1 << 23)) / (1 << 23);
  }
  Floats many(int64_t count, float scale = 1.0f) {
    Floats values(static_cast<size_t>(count));
    for (float& value : values) value = one() * scale;
    return values;
  }

 private:
  uint64_t state_;
};

// Records of a name, a count, and floats; every NaN is written alike, for machines differ in their bits.
class Output {
 public:
  explicit Output(const char* path) : file_(std::fopen(path, "wb")) {
    if (file_ == nullptr) std::perror(path), std::exit(1);
  }
  ~Output() { std::fclose(file_); }
  void put(const std::string& name, const float* values, int64_t count) {
    std::fprintf(file_, "%s %lld\n", name.c_str(), static_cast<long long>(count));
    for (int64_t i = 0; i < count; ++i) {
      const float value = std::isnan(values[i]) ? std::nanf("") : values[i];
      std::fwrite(&value, sizeof value, 1, file_);
    }
  }
  void put(const std::string& name, const Floats& values) {
    put(name, values.data(), static_cast<int64_t>(values.size()));
  }

 private:
  std::FILE* file_;
};

void rows(Output& output) {
  for (const int64_t n : {1, 3, 15, 16, 17, 64, 333}) {
    Numbers numbers(static_cast<uint64_t>(n));
    Floats x = numbers.many(n, 100.0f), weight = numbers.many(n), out(x.size());
    const std::string tail = "/" + std::to_string(n);
    mp_rms_norm(x.data(), weight.data(), 1e-6f, n, out.data());
    output.put("rms_norm" + tail, out);
    Floats scores = x;
    scores.resize(static_cast<size_t>((n + 15) / 16 * 16));
    const float total = mp_softmax(scores.data(), n);
    output.put("softmax" + tail, scores);
    output.put("softmax_total" + tail, &total, 1);
    scores = x;
    scores.resize(static_cast<size_t>((n + 15) / 16 * 16));
    scores[static_cast<size_t>(n / 3)] = NAN;
    mp_softmax(scores.data(), n);
    output.put("softmax_spoiled" + tail, scores);
    const float extremes[] = {INFINITY, -INFINITY, NAN, 0.0f, -0.0f, 1e-40f, -1e-40f, 3e38f, -3e38f, 88.0f, -87.3f};
    for (size_t i = 0; i < sizeof extremes / sizeof *extremes && n > 100; ++i) x[i] = extremes[i];
    mp_exp(x.data(), n, out.data());
    output.put("exp" + tail, out);
    mp_silu(x.data(), n, out.data());
    output.put("silu" + tail, out);
    const float finite[] = {static_cast<float>(mp_finite(x.data(), n)), static_cast<float>(mp_finite(weight.data(), n))};
    output.put("finite" + tail, finite, 2);
  }
}

struct Kind {
  Format format;
  int64_t group;
  Format scales;
  std::string name() const {
    const std::string format_name = format_names[format];
    return format < int8 ? format_name : format_name + "x" + std::to_string(group) + format_names[scales];
  }
};
const Kind kinds[] = {{float32, 0, float32},  {bfloat16, 0, float32}, {float16, 0, float32}, {int8, 32, float16},
                      {int8, 128, bfloat16},  {int4, 32, float16},    {int4, 64, float32}};

int64_t matrix(const Kind& kind, int64_t rows, int64_t cols, int64_t parts, uint64_t seed) {
  const int64_t handle = check(mp_matrix_new(rows, cols, parts, kind.format, kind.group, kind.scales));
  for (int64_t part = 0; part < parts; ++part) {
    const Floats weights = Numbers(seed + static_cast<uint64_t>(part)).many(rows * cols, 0.2f);
    check(mp_matrix_pack(handle, part, 0, rows, weights.data(), float32));
  }
  return handle;
}

void products(Output& output) {
  constexpr int64_t n = 85, k = 201;
  for (const Kind& kind : kinds) {
    const int64_t handle = matrix(kind, n, k, 1, 7);
    for (const int64_t m : {1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 37, 61}) {
      Floats a = Numbers(static_cast<uint64_t>(m)).many(m * k, 3.0f), out(static_cast<size_t>(m * 96));
      if (m == 5) a[0] = NAN, a[static_cast<size_t>(2 * k + 40)] = INFINITY, a[static_cast<size_t>(3 * k)] = 1e-41f;
      check(mp_set_threads(m == 37 ? 3 : 1));
      check(mp_matmul(handle, a.data(), k, m, out.data()));
      output.put("product/" + kind.name() + "/" + std::to_string(m), out);
    }
    check(mp_matrix_free(handle));
  }
}

// The largest sums there are: they must not overflow on the way.
void extremes(Output& output) {
  constexpr int64_t n = 32, k = 256;
  for (const Format format : {int8, int4})
    for (const int byte : {0, 255}) {
      const int64_t handle = check(mp_matrix_new(n, k, 1, format, 128, float32));
      const Floats ones(n * k, 1.0f);
      check(mp_matrix_pack(handle, 0, 0, n, ones.data(), float32));
      const std::vector<uint8_t> whole(n * k, static_cast<uint8_t>(byte));
      check(mp_matrix_pack_whole(handle, 0, 0, n, whole.data()));
      for (const int64_t m : {1, 2, 5}) {
        Floats a(static_cast<size_t>(m * k), 127.0f), out(static_cast<size_t>(m * n));
        for (size_t i = 0; i < a.size() / 2; ++i) a[i] = -127.0f;
        check(mp_matmul(handle, a.data(), k, m, out.data()));
        output.put(std::string("extreme/") + format_names[format] + "/" + std::to_string(byte) + "/" + std::to_string(m), out);
      }
      check(mp_matrix_free(handle));
    }
}

// What the blocks of a model are like.
struct Shape {
  int64_t heads, kv_heads, dim, rotary, window;
  bool alibi, norms, experts, even;  // norms of heads and factors of frequencies; mixtures; rows of a head of length one
};

// A small decoder of two layers, its prompts and a few greedy steps after them.
class Decoder {
 public:
  Decoder(const Kind& kind, const Shape& shape, Format cache) : kind_(kind), shape_(shape) {
    model_ = check(mp_model_new(kRows, 4, kBlocks, cache));
    embedding_ = block(0, kVocabulary, 1.0);
    put(embedding_, 0, matrix(kind, kVocabulary, kHidden, 1, 1));
    for (uint64_t layer = 1; layer <= kLayers; ++layer) add_attention(100 * layer), add_feed_forward(100 * layer + 50);
    head_ = block(3, kVocabulary, 0.5);
    put(head_, 0, matrix(kind, kVocabulary, kHidden, 1, 2));
    vector(head_, 0, kHidden, 3);
  }
  ~Decoder() { mp_model_free(model_); }

  void run(Output& output, const std::string& name, int64_t prompt) {
    std::vector<int32_t> tokens;
    for (int64_t i = 0; i < prompt; ++i) tokens.push_back(static_cast<int32_t>(i * 37 % kVocabulary));
    int64_t done = 0;
    for (const int64_t upto : {int64_t{19}, int64_t{20}, prompt}) {
      next(tokens.data() + done, done, upto - done);
      done = upto;
      output.put(name + "/" + std::to_string(done), logits_);
    }
    for (int i = 0; i < 4; ++i) {
      size_t best = 0;
      for (size_t token = 1; token < kVocabulary; ++token) best = logits_[token] > logits_[best] ? token : best;
      const auto token = static_cast<int32_t>(best);
      next(&token, done++, 1);
      output.put(name + "/" + std::to_string(done), logits_);
    }
  }

 private:
  static constexpr int64_t kHidden = 72, kInner = 104, kVocabulary = 150, kLayers = 2, kExperts = 5;
  static constexpr int64_t kRows = 600, kBlocks = 40;

  int64_t block(int64_t kind, int64_t inner, double scale) const {
    const int64_t shape[] = {kind, kHidden, inner, shape_.heads, shape_.kv_heads, shape_.dim, shape_.rotary,
                             shape_.window, kExperts, 2, 1, shape_.even};
    const double reals[] = {1e-5, scale};
    return check(mp_block_new(model_, shape, reals));
  }
  static void put(int64_t block, int64_t slot, int64_t matrix) {
    check(mp_block_set_matrix(block, slot, matrix));
    check(mp_matrix_free(matrix));
  }
  static void vector(int64_t block, int64_t slot, int64_t size, uint64_t seed) {
    const Floats values = Numbers(seed).many(size);
    check(mp_block_set_vector(block, slot, size, 0, size, values.data()));
  }

  void add_attention(uint64_t seed) {
    const int64_t inner = shape_.heads * shape_.dim, wide = inner + 2 * shape_.kv_heads * shape_.dim;
    const int64_t attention = block(1, 0, 0.7);
    put(attention, 0, matrix(kind_, wide, kHidden, 1, seed));
    put(attention, 1, matrix(kind_, kHidden, inner, 1, seed + 1));
    vector(attention, 0, kHidden, seed + 2);
    vector(attention, 1, wide, seed + 3);
    if (shape_.alibi) vector(attention, 4, shape_.heads, seed + 4);
    for (int64_t slot = 5; slot < 7 && shape_.norms; ++slot) vector(attention, slot, shape_.dim, seed + 5);
    if (shape_.norms) vector(attention, 7, shape_.rotary / 2, seed + 6);
    layers_.push_back(attention);
  }

  void add_feed_forward(uint64_t seed) {
    const int64_t feed_forward = block(shape_.experts ? 4 : 2, kInner, 0.7);
    if (shape_.experts) put(feed_forward, 0, matrix(kind_, kExperts, kHidden, 1, seed));
    for (int64_t expert = shape_.experts ? 0 : -1; expert < (shape_.experts ? kExperts : 0); ++expert) {
      const int64_t slot = 2 * (expert + 1);
      put(feed_forward, slot, matrix(kind_, kInner, kHidden, 2, ++seed));
      put(feed_forward, slot + 1, matrix(kind_, kHidden, kInner, 1, ++seed));
    }
    vector(feed_forward, 0, kHidden, seed + 1);
    layers_.push_back(feed_forward);
  }

  void next(const int32_t* tokens, int64_t start, int64_t count) {
    std::vector<int32_t> table;
    for (int32_t i = 0; i < kBlocks; ++i) table.push_back(i * 7 % static_cast<int32_t>(kBlocks));
    const int64_t shape[] = {count, start, kBlocks, count - 1, 0};
    const double rope[] = {10000.0, 1.1};
    check(mp_step(model_, 1, shape, rope, table.data()));
    Floats x(static_cast<size_t>(count * kHidden)), y(x.size());
    check(mp_run_block(embedding_, tokens, x.data()));
    for (const int64_t layer : layers_) check(mp_run_block(layer, x.data(), y.data())), x.swap(y);
    check(mp_run_block(head_, x.data(), y.data()));
    int64_t stride = 0;
    const float* logits = mp_logits(model_, &stride);
    logits_.assign(logits, logits + kVocabulary);
    logits_.insert(logits_.end(), x.end() - kHidden, x.end());
  }

  Kind kind_;
  Shape shape_;
  int64_t model_, embedding_, head_;
  std::vector<int64_t> layers_;
  Floats logits_;
};

void models(Output& output) {
  const Shape shapes[] = {{4, 2, 16, 16, 0, false, true, false, true},
                          {3, 1, 20, 10, 100, false, false, true, false},
                          {5, 5, 8, 0, 0, true, false, false, false}};
  const struct {
    size_t kind, shape;
    Format cache;
    int64_t prompt;  // the longer ones beyond a chunk of attention
  } cases[] = {{0, 0, float32, 541}, {1, 1, bfloat16, 541}, {2, 2, float16, 541}, {3, 0, int8, 541},
               {4, 1, int8, 133},    {5, 2, int8, 69},      {6, 1, float32, 69}};
  for (const auto& one : cases) {
    check(mp_set_threads(one.kind == 0 ? 3 : 1));
    const std::string name = "model/" + kinds[one.kind].name() + "/" + format_names[one.cache];
    Decoder(kinds[one.kind], shapes[one.shape], one.cache).run(output, name, one.prompt);
  }
}

}  // namespace

int main(int count, char** arguments) {
  if (count != 3) return std::puts(mp_isa()) < 0;
  if (mp_select_isa(arguments[1]) < 0) return 3;
  Output output(arguments[2]);
  rows(output);
  products(output);
  extremes(output);
  models(output);
  return 0;
}
