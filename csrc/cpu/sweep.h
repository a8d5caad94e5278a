// The sweep over lists of weights, and its cousins for optimisers that have no sweep inside.
#pragma once

#include <atomic>
#include <optional>

#include "../common.h"
#include "bound_sweep.h"
#include "sweep_types.h"

namespace sparse_ops {

using OptionalTensor = std::optional<Tensor>;

// The sweeps answer false, and have done nothing, where their tensors are not plain (plain_operands.h).
bool regularized_sgd_(Tensors weights, Tensors grads, Tensors momenta, Tensors masks, Tensors groups, Ints scopes,
                      Tensor coefficients, Tensor brackets, Tensor statistics, Tensor candidates, std::string penalty,
                      double lr, double momentum, double dampening, double weight_decay, bool nesterov, bool maximize,
                      bool first_step, OptionalTensor lr_tensor, OptionalTensor grad_scale,
                      OptionalTensor found_inf);

// The same over lists that sweep_bind keeps, never a first step.
bool bound_sgd_(int64_t bound, Tensors grads, Tensor coefficients, Tensor brackets, Tensor statistics,
                Tensor candidates, std::string penalty, double lr, double momentum, double dampening,
                double weight_decay, bool nesterov, bool maximize, OptionalTensor grad_scale,
                OptionalTensor found_inf);

bool regularized_adamw_(Tensors weights, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors max_exp_avg_sqs,
                        Tensors steps, Tensors masks, Tensors groups, Ints scopes, Tensor coefficients, Tensor brackets,
                        Tensor statistics, Tensor candidates, std::string penalty, double lr, double beta1,
                        double beta2, double eps, double weight_decay, bool maximize, OptionalTensor lr_tensor,
                        OptionalTensor grad_scale, OptionalTensor found_inf);

// The same over lists that sweep_bind keeps, whose steps it counts itself where it does not skip.
bool bound_adamw_(int64_t bound, Tensors grads, Tensor coefficients, Tensor brackets, Tensor statistics,
                  Tensor candidates, std::string penalty, double lr, double beta1, double beta2, double eps,
                  double weight_decay, bool maximize, OptionalTensor grad_scale, OptionalTensor found_inf);

bool sweep_observe_(Tensors weights, Tensors masks, Ints scopes, Tensor coefficients, Tensor brackets,
                    Tensor statistics, Tensor candidates);

void add_penalty_grad_(Tensors grads, Tensors weights, Tensors groups, Ints scopes, Tensor coefficients,
                       std::string penalty, OptionalTensor grad_scale);

// Of |w| over all the weights: n, and t0 to t2 at the scale s. Reads only.
SweepSums magnitude_sums(const Tensors& weights, double s);

// What the drivers share.
struct Sweep {
  const SweepLists& lists;
  const Tensors& grads;  // none where the weights are not updated
  const Tensor &coefficients, &brackets, &statistics, &candidates;

  bool plain() const;
  // One rule for all tensors, or one for each.
  void run(const std::string& penalty, const std::vector<SweepRule>& rules) const;
};

struct SweepSettings {
  const std::string& penalty;
  double lr, weight_decay;
  bool maximize;
  const OptionalTensor &lr_tensor, &grad_scale, &found_inf;

  bool skips() const;
  SweepRule rule(RuleKind kind) const;  // what every kind has; the rest is 0
};

Operand operand(const Tensor& t);
double number(const OptionalTensor& t, double otherwise);
Penalty parse_penalty(const std::string& name);
// The scopes' factors under this penalty; all but on, off and s are left 0.
std::vector<SweepScope> scope_factors(const Tensor& coefficients, const std::string& penalty);

struct SweepPiece {
  int64_t tensor, first, n;
};
// The weights cut into chunks, tensor by tensor.
std::vector<SweepPiece> sweep_pieces(const Tensors& weights);

// f(begin, end) over runs of pieces, which threads take one after the other: many small tensors, or a core that another
// program uses too, do not keep the others waiting.
template <typename F>
void parallel_pieces(const std::vector<SweepPiece>& pieces, const F& f) {
  constexpr int64_t kRun = 4 * kSweepChunk;  // elements; a run of a large tensor is 256 KB of each stream
  int64_t total = 0;
  for (const SweepPiece& piece : pieces) total += piece.n;
  const int64_t threads = torch::stable::get_num_threads();
  const int64_t even = total / (4 * threads) + 1;
  const int64_t aim = even < kSweepChunk ? kSweepChunk : even < kRun ? even : kRun;
  std::vector<int64_t> ends;
  int64_t run = 0;
  for (size_t p = 0; p < pieces.size(); ++p) {
    run += pieces[p].n;
    if (run < aim && p + 1 < pieces.size()) continue;
    ends.push_back(static_cast<int64_t>(p) + 1);
    run = 0;
  }
  const auto runs = static_cast<int64_t>(ends.size());
  std::atomic<int64_t> next{0};
  parallel(0, runs < threads ? runs : threads, 1, [&](int64_t, int64_t) {
    for (int64_t r; (r = next.fetch_add(1, std::memory_order_relaxed)) < runs;) f(r == 0 ? 0 : ends[r - 1], ends[r]);
  });
}
const uint8_t* packed_at(const Tensors& packed, int64_t tensor, int64_t first);
Operand operand_at(Operand base, int64_t first);

}  // namespace sparse_ops
