// AdamW's rule over the sweep: its lists handed over with steps that are counted already, or kept, and counted here.
#include <algorithm>
#include <cmath>
#include <functional>
#include <utility>

#include "plain_operands.h"
#include "sweep.h"

namespace sparse_ops {
namespace {

// One rule where all steps are equal, else one for each tensor, without the same powers twice in a row.
std::vector<SweepRule> rules_of(const SweepRule& rule, const Tensors& steps) {
  std::vector<double> counts;
  for (const Tensor& step : steps) counts.push_back(*static_cast<const float*>(step.const_data_ptr()));
  const bool alike = std::adjacent_find(counts.begin(), counts.end(), std::not_equal_to<>()) == counts.end();
  std::vector<SweepRule> rules(alike ? 1 : counts.size(), rule);
  for (size_t t = 0; t < rules.size() && t < counts.size(); ++t) {
    if (t > 0 && counts[t] == counts[t - 1]) {
      rules[t] = rules[t - 1];
      continue;
    }
    rules[t].step_size = rule.lr / (1 - std::pow(rule.beta1, counts[t]));
    rules[t].correction = 1 / std::sqrt(1 - std::pow(rule.beta2, counts[t]));
  }
  return rules;
}

bool sweep_adamw(const Sweep& sweep, const SweepSettings& settings, double beta1, double beta2, double eps,
                 bool counts) {
  const SweepLists& lists = sweep.lists;
  const size_t n = lists.weights.size();
  if (sweep.grads.size() != n || !plain_counts(lists.steps, n) || !sweep.plain()) return false;
  if (settings.skips()) return true;
  if (counts)  // all before one is read: a loaded state may share one between tensors, and torch adds as often
    for (const Tensor& step : lists.steps) *static_cast<float*>(step.mutable_data_ptr()) += 1;
  SweepRule rule = settings.rule(lists.states.size() == 2 ? RuleKind::adamw : RuleKind::amsgrad);
  rule.beta1 = beta1;
  rule.beta2 = beta2;
  rule.eps = eps;
  sweep.run(settings.penalty, rules_of(rule, lists.steps));
  return true;
}

}  // namespace

bool regularized_adamw_(Tensors weights, Tensors grads, Tensors exp_avgs, Tensors exp_avg_sqs, Tensors max_exp_avg_sqs,
                        Tensors steps, Tensors masks, Tensors groups, Ints scopes, Tensor coefficients, Tensor brackets,
                        Tensor statistics, Tensor candidates, std::string penalty, double lr, double beta1,
                        double beta2, double eps, double weight_decay, bool maximize, OptionalTensor lr_tensor,
                        OptionalTensor grad_scale, OptionalTensor found_inf) {
  std::vector<Tensors> states;
  states.push_back(std::move(exp_avgs));
  states.push_back(std::move(exp_avg_sqs));
  if (!max_exp_avg_sqs.empty()) states.push_back(std::move(max_exp_avg_sqs));
  const SweepLists lists{std::move(weights), std::move(states), std::move(steps),
                         std::move(masks),   std::move(groups), std::move(scopes)};
  return sweep_adamw({lists, grads, coefficients, brackets, statistics, candidates},
                     {penalty, lr, weight_decay, maximize, lr_tensor, grad_scale, found_inf}, beta1, beta2, eps, false);
}

bool bound_adamw_(int64_t bound, Tensors grads, Tensor coefficients, Tensor brackets, Tensor statistics,
                  Tensor candidates, std::string penalty, double lr, double beta1, double beta2, double eps,
                  double weight_decay, bool maximize, OptionalTensor grad_scale, OptionalTensor found_inf) {
  const auto lists = bound_sweep(bound);
  const OptionalTensor none;
  return sweep_adamw({*lists, grads, coefficients, brackets, statistics, candidates},
                     {penalty, lr, weight_decay, maximize, none, grad_scale, found_inf}, beta1, beta2, eps, true);
}

}  // namespace sparse_ops
