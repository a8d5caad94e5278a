// A table of bound lists under numbers that are never used twice.
#include "bound_sweep.h"

#include <mutex>
#include <unordered_map>
#include <utility>

namespace sparse_ops {
namespace {

struct Table {
  std::mutex mutex;
  std::unordered_map<int64_t, std::shared_ptr<const SweepLists>> entries;
  int64_t last = 0;
};

Table& table() {
  static Table* const made = new Table;  // never destroyed: torch may be gone by then
  return *made;
}

}  // namespace

int64_t sweep_bind(Tensors weights, Tensors states, Tensors steps, Tensors masks, Tensors groups, Ints scopes) {
  std::vector<Tensors> lists;
  const auto n = static_cast<std::ptrdiff_t>(weights.size());
  for (auto first = states.begin(); n > 0 && states.end() - first >= n; first += n)
    lists.emplace_back(first, first + n);
  auto entry = std::make_shared<const SweepLists>(SweepLists{
      std::move(weights), std::move(lists), std::move(steps), std::move(masks), std::move(groups), std::move(scopes)});
  const std::lock_guard<std::mutex> lock(table().mutex);
  table().entries.emplace(++table().last, std::move(entry));
  return table().last;
}

void sweep_release(int64_t bound) {
  std::shared_ptr<const SweepLists> entry;  // its tensors go after the lock
  const std::lock_guard<std::mutex> lock(table().mutex);
  const auto found = table().entries.find(bound);
  if (found == table().entries.end()) return;
  entry = std::move(found->second);
  table().entries.erase(found);
}

std::shared_ptr<const SweepLists> bound_sweep(int64_t bound) {
  const std::lock_guard<std::mutex> lock(table().mutex);
  const auto found = table().entries.find(bound);
  STD_TORCH_CHECK(found != table().entries.end(), "sparse_ops: there is no bound sweep ", bound);
  return found->second;
}

}  // namespace sparse_ops
