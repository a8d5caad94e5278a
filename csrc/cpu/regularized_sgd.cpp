// SGD's rule over the sweep: its lists handed over, or kept.
#include <utility>

#include "sweep.h"

namespace sparse_ops {
namespace {

bool sweep_sgd(const Sweep& sweep, const SweepSettings& settings, double momentum, double dampening, bool nesterov,
               bool first_step) {
  if (sweep.grads.size() != sweep.lists.weights.size() || !sweep.plain()) return false;
  if (settings.skips()) return true;
  SweepRule rule = settings.rule(sweep.lists.states.empty() ? RuleKind::sgd : RuleKind::momentum);
  rule.momentum = momentum;
  rule.dampening = dampening;
  rule.nesterov = nesterov;
  rule.first_step = first_step;
  sweep.run(settings.penalty, {rule});
  return true;
}

}  // namespace

bool regularized_sgd_(Tensors weights, Tensors grads, Tensors momenta, Tensors masks, Tensors groups, Ints scopes,
                      Tensor coefficients, Tensor brackets, Tensor statistics, Tensor candidates, std::string penalty,
                      double lr, double momentum, double dampening, double weight_decay, bool nesterov, bool maximize,
                      bool first_step, OptionalTensor lr_tensor, OptionalTensor grad_scale,
                      OptionalTensor found_inf) {
  std::vector<Tensors> states;
  if (!momenta.empty()) states.push_back(std::move(momenta));
  const SweepLists lists{std::move(weights), std::move(states), {}, std::move(masks), std::move(groups),
                         std::move(scopes)};
  return sweep_sgd({lists, grads, coefficients, brackets, statistics, candidates},
                   {penalty, lr, weight_decay, maximize, lr_tensor, grad_scale, found_inf}, momentum, dampening,
                   nesterov, first_step);
}

bool bound_sgd_(int64_t bound, Tensors grads, Tensor coefficients, Tensor brackets, Tensor statistics,
                Tensor candidates, std::string penalty, double lr, double momentum, double dampening,
                double weight_decay, bool nesterov, bool maximize, OptionalTensor grad_scale,
                OptionalTensor found_inf) {
  const auto lists = bound_sweep(bound);
  const OptionalTensor none;
  return sweep_sgd({*lists, grads, coefficients, brackets, statistics, candidates},
                   {penalty, lr, weight_decay, maximize, none, grad_scale, found_inf}, momentum, dampening, nesterov,
                   false);
}

}  // namespace sparse_ops
