// The operators MindSpore calls: int Name(count, inputs and outputs, dimensions, shapes, types, stream, extra).
// They never report failure to MindSpore, which would refuse to run anything afterwards: a failure is kept with the
// model, ends the work of the step, and is raised by the runner.
#include <exception>
#include <stdexcept>

#include "model.h"

namespace mindport {
namespace {

constexpr int kCount = 4;  // input, step, handle, output

template <class Body>
int guarded(int count, void** params, int64_t** shapes, const Body& body) {
  Model* model = nullptr;
  try {
    Registry& registry = Registry::instance();
    std::lock_guard<std::mutex> lock(registry.mutex());
    if (count != kCount) return 1;  // the graph itself is wrong: there is no model to tell
    Block& block = registry.block(*static_cast<const int64_t*>(params[2]));
    model = block.model;
    if (!model->failure.empty()) return 0;
    if (*static_cast<const int64_t*>(params[1]) != model->step.serial)
      throw std::logic_error("an operator ran for a step that is not the current one");
    if (shapes[0][0] < model->step.rows) throw std::logic_error("the graph has fewer rows than the step");
    body(block, params[0], params[kCount - 1]);
  } catch (const std::bad_alloc&) {
    if (model == nullptr) return 1;
    model->failure = "out of memory";
  } catch (const std::exception& error) {
    if (model == nullptr) return 1;
    model->failure = error.what();
  }
  return 0;
}

void compute(Block& block, const float* x, float* out) {
  switch (block.shape.kind) {
    case BlockKind::attention: return attention_block(block, x, out);
    case BlockKind::feed_forward: return feed_forward(block, x, out);
    case BlockKind::mixture: return mixture(block, x, out);
    default: throw std::logic_error("a stack has blocks that keep the shape only");
  }
}

}  // namespace
}  // namespace mindport

#define MINDPORT_OPERATOR(name, ...)                                                                          \
  extern "C" __attribute__((visibility("default"))) int name(int count, void** params, int*, int64_t** shapes, \
                                                             const char**, void*, void*) {                    \
    using namespace mindport;                                                                                 \
    return guarded(count, params, shapes, [](Block& block, const void* in, void* out) { __VA_ARGS__; });      \
  }

MINDPORT_OPERATOR(MindPortEmbedding, embed(block, static_cast<const int32_t*>(in), static_cast<float*>(out)))
MINDPORT_OPERATOR(MindPortAttention, attention_block(block, static_cast<const float*>(in), static_cast<float*>(out)))
MINDPORT_OPERATOR(MindPortFeedForward, feed_forward(block, static_cast<const float*>(in), static_cast<float*>(out)))
MINDPORT_OPERATOR(MindPortMixture, mixture(block, static_cast<const float*>(in), static_cast<float*>(out)))
MINDPORT_OPERATOR(MindPortHead, head(block, static_cast<const float*>(in));
                  *static_cast<int32_t*>(out) = static_cast<int32_t>(block.model->step.logit_rows.size()))

// Blocks one after the other, whose handles are the third input; after the first they work in place.
extern "C" __attribute__((visibility("default"))) int MindPortStack(int count, void** params, int*, int64_t** shapes,
                                                                    const char**, void*, void*) {
  using namespace mindport;
  if (count != kCount) return 1;
  void* inputs[] = {params[0], params[1], params[2], params[3]};
  for (int64_t i = 0; i < shapes[2][0]; ++i) {
    inputs[2] = static_cast<int64_t*>(params[2]) + i;
    const int failed = guarded(count, inputs, shapes, [](Block& block, const void* in, void* out) {
      compute(block, static_cast<const float*>(in), static_cast<float*>(out));
    });
    if (failed != 0) return failed;
    inputs[0] = params[3];
  }
  return 0;
}
