#include <stdexcept>

#include "model.h"

namespace mindport {
namespace {

template <class Map>
auto& find(Map& map, int64_t handle, const char* what) {
  const auto found = map.find(handle);
  if (found == map.end()) throw std::invalid_argument(std::string("no such ") + what + ": " + std::to_string(handle));
  return found->second;
}

}  // namespace

Registry& Registry::instance() {
  static Registry registry;
  return registry;
}

int64_t Registry::add(std::unique_ptr<Model> model) {
  std::lock_guard<std::mutex> lock(table_mutex_);
  models_[next_] = std::move(model);
  return next_++;
}

int64_t Registry::add(std::unique_ptr<Block> block) {
  std::lock_guard<std::mutex> lock(table_mutex_);
  block->model->blocks.push_back(block.get());
  blocks_[next_] = std::move(block);
  return next_++;
}

int64_t Registry::add(std::shared_ptr<Matrix> matrix) {
  std::lock_guard<std::mutex> lock(table_mutex_);
  matrices_[next_] = std::move(matrix);
  return next_++;
}

int64_t Registry::add(std::unique_ptr<Adapter> adapter) {
  std::lock_guard<std::mutex> lock(table_mutex_);
  adapters_[next_] = std::move(adapter);
  return next_++;
}

Model& Registry::model(int64_t handle) {
  std::lock_guard<std::mutex> lock(table_mutex_);
  return *find(models_, handle, "model");
}

Block& Registry::block(int64_t handle) {
  std::lock_guard<std::mutex> lock(table_mutex_);
  return *find(blocks_, handle, "block");
}

std::shared_ptr<Matrix> Registry::matrix(int64_t handle) {
  std::lock_guard<std::mutex> lock(table_mutex_);
  return find(matrices_, handle, "matrix");
}

Adapter& Registry::adapter(int64_t handle) {
  std::lock_guard<std::mutex> lock(table_mutex_);
  return *find(adapters_, handle, "adapter");
}

void Registry::remove_model(int64_t handle) {
  std::scoped_lock lock(mutex_, table_mutex_);
  const Model* model = find(models_, handle, "model").get();
  for (auto it = blocks_.begin(); it != blocks_.end();)
    it = it->second->model == model ? blocks_.erase(it) : std::next(it);
  models_.erase(handle);
}

void Registry::remove_matrix(int64_t handle) {
  std::lock_guard<std::mutex> lock(table_mutex_);
  find(matrices_, handle, "matrix");
  matrices_.erase(handle);
}

void Registry::remove_adapter(int64_t handle) {
  std::scoped_lock lock(mutex_, table_mutex_);  // no step is being computed
  find(adapters_, handle, "adapter");
  adapters_.erase(handle);
}

}  // namespace mindport
