// The sweep over lists of weights: chunks of fixed size, sums combined in their order, so that threads change no bit.
#include "sweep.h"

#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <utility>

#include "plain_operands.h"

#define SPARSE_OPS_BODY "cpu/sweep_body.h"
#include "../foreach_isa.h"

namespace sparse_ops {
namespace {

constexpr int kColumns = 7;  // of the statistics

// The smallest float that is not below x: u >= x and u >= that float agree for every float u.
double float_from(double x) {
  const float nearest = static_cast<float>(x);
  return nearest < x ? std::nextafterf(nearest, std::numeric_limits<float>::infinity()) : nearest;
}

// Candidates found in one chunk go behind those of the scope's other chunks; what does not fit is counted alone.
void append(const Tensor& candidates, int64_t scope, std::atomic<int64_t>& stored, const void* found, bool is_double,
            int64_t count) {
  if (count == 0) return;
  const int64_t capacity = candidates.size(1);
  const int64_t first = stored.fetch_add(count, std::memory_order_relaxed);
  const int64_t n = first >= capacity ? 0 : capacity - first < count ? capacity - first : count;
  if (candidates.scalar_type() == ScalarType::Double) {
    double* out = static_cast<double*>(candidates.mutable_data_ptr()) + scope * capacity + first;
    for (int64_t i = 0; i < n; ++i)
      out[i] = is_double ? static_cast<const double*>(found)[i] : static_cast<const float*>(found)[i];
  } else {
    float* out = static_cast<float*>(candidates.mutable_data_ptr()) + scope * capacity + first;
    if (n > 0) std::memcpy(out, found, n * sizeof(float));
  }
}

}  // namespace

bool Sweep::plain() const {
  std::vector<const Tensors*> likes;
  if (!grads.empty()) likes.push_back(&grads);
  for (const Tensors& state : lists.states) likes.push_back(&state);
  return plain_operands(lists.weights, likes, {&lists.masks, &lists.groups}) && apart(lists.weights) &&
         plain_scopes(lists.scopes, lists.weights.size(), coefficients.size(0));
}

void Sweep::run(const std::string& penalty, const std::vector<SweepRule>& rules) const {
  const Tensors& weights = lists.weights;
  const std::vector<Tensors>& states = lists.states;
  const int64_t rows = coefficients.size(0);
  std::vector<SweepScope> wide = scope_factors(coefficients, penalty), narrow;
  const auto* bracket = static_cast<const double*>(brackets.const_data_ptr());
  for (int64_t r = 0; r < rows; ++r) {
    wide[r].low = bracket[2 * r];
    wide[r].high = bracket[2 * r + 1];
    narrow.push_back(wide[r]);
    narrow[r].low = float_from(wide[r].low);
    narrow[r].high = float_from(wide[r].high);
  }
  auto* table = static_cast<double*>(statistics.mutable_data_ptr());
  const std::unique_ptr<std::atomic<int64_t>[]> stored(new std::atomic<int64_t>[rows > 0 ? rows : 1]);
  for (int64_t r = 0; r < rows; ++r) stored[r] = static_cast<int64_t>(table[r * kColumns + 5]);

  std::vector<SweepChunk> whole(weights.size());
  for (size_t t = 0; t < weights.size(); ++t) {
    whole[t].w = operand(weights[t]);
    whole[t].g = grads.empty() ? Operand{nullptr, Kind::f32} : operand(grads[t]);
    for (size_t k = 0; k < states.size(); ++k) whole[t].states[k] = operand(states[k][t]);
    whole[t].mask = packed_at(lists.masks, t, 0);
    whole[t].group = packed_at(lists.groups, t, 0);
  }
  const std::vector<SweepPiece> pieces = sweep_pieces(weights);
  std::vector<SweepSums> sums(pieces.size());
  const auto chunk_kernel = SPARSE_OPS_DISPATCH(sweep_chunk);
  parallel_pieces(pieces, [&](int64_t begin, int64_t end) {
    alignas(64) unsigned char found[(kSweepChunk + 16) * sizeof(double)];
    for (int64_t p = begin; p < end; ++p) {
      const auto [t, first, n] = pieces[p];
      SweepChunk chunk = whole[t];
      chunk.n = n;
      chunk.w = operand_at(chunk.w, first);
      if (chunk.g.data != nullptr) chunk.g = operand_at(chunk.g, first);
      for (size_t k = 0; k < states.size(); ++k) chunk.states[k] = operand_at(chunk.states[k], first);
      if (chunk.mask != nullptr) chunk.mask += first / 8;
      if (chunk.group != nullptr) chunk.group += first / 8;
      const int64_t scope = lists.scopes[t];
      const bool is_double = chunk.w.kind == Kind::f64;
      const SweepScope* line = scope < 0 ? nullptr : is_double ? &wide[scope] : &narrow[scope];
      chunk_kernel(chunk, rules.size() == 1 ? rules[0] : rules[t], line, sums[p], found);
      if (scope >= 0) append(candidates, scope, stored[scope], found, is_double, sums[p].count);
    }
  });
  for (size_t p = 0; p < pieces.size(); ++p) {
    const int64_t scope = lists.scopes[pieces[p].tensor];
    if (scope < 0) continue;
    double* row = table + scope * kColumns;
    const SweepSums& sum = sums[p];
    const bool curved = wide[scope].s != 0;
    const double terms[kColumns] = {sum.n, sum.t0, curved ? sum.t1 : sum.n, sum.t2, static_cast<double>(sum.above),
                                    static_cast<double>(sum.count), static_cast<double>(pieces[p].n)};
    for (int c = 0; c < kColumns; ++c) row[c] += terms[c];
  }
}

bool SweepSettings::skips() const { return number(found_inf, 0) != 0; }

SweepRule SweepSettings::rule(RuleKind kind) const {
  SweepRule rule{};
  rule.kind = kind;
  rule.penalty = parse_penalty(penalty);
  rule.lr = number(lr_tensor, lr);
  rule.weight_decay = weight_decay;
  rule.scaled = grad_scale.has_value();
  rule.grad_scale = number(grad_scale, 1);
  rule.maximize = maximize;
  return rule;
}

Operand operand(const Tensor& t) {
  void* data = const_cast<void*>(t.const_data_ptr());
  switch (t.scalar_type()) {
    case ScalarType::Double: return {data, Kind::f64};
    case ScalarType::Half: return {data, Kind::f16};
    case ScalarType::BFloat16: return {data, Kind::bf16};
    default: return {data, Kind::f32};
  }
}

Operand operand_at(Operand base, int64_t first) {
  const int64_t size = base.kind == Kind::f64 ? 8 : base.kind == Kind::f32 ? 4 : 2;
  return {static_cast<unsigned char*>(base.data) + first * size, base.kind};
}

double number(const OptionalTensor& t, double otherwise) {
  if (!t.has_value()) return otherwise;
  const Operand x = operand(*t);
  return x.kind == Kind::f64   ? *static_cast<double*>(x.data)
         : x.kind == Kind::f32 ? *static_cast<float*>(x.data)
         : x.kind == Kind::f16 ? scalar::widen_f16(*static_cast<uint16_t*>(x.data))
                               : scalar::widen_bf16(*static_cast<uint16_t*>(x.data));
}

Penalty parse_penalty(const std::string& name) {
  if (name == "none") return Penalty::none;
  if (name == "l1") return Penalty::sign;
  if (name == "hypersparse") return Penalty::hypersparse;
  return Penalty::linear;
}

std::vector<SweepScope> scope_factors(const Tensor& coefficients, const std::string& penalty) {
  const auto* table = static_cast<const double*>(coefficients.const_data_ptr());
  std::vector<SweepScope> scopes(coefficients.size(0));
  for (size_t r = 0; r < scopes.size(); ++r) {
    const double strength = table[4 * r], kept = table[4 * r + 1], s = table[4 * r + 2], ratio = table[4 * r + 3];
    scopes[r] = {strength, strength, s, 0, 0};
    if (penalty == "l2") scopes[r].on = scopes[r].off = 2 * strength;
    if (penalty == "growing_l2") scopes[r].off = kept;
    if (penalty == "hypersparse") scopes[r].on = scopes[r].off = strength * s * ratio;
  }
  return scopes;
}

const uint8_t* packed_at(const Tensors& packed, int64_t tensor, int64_t first) {
  if (packed.empty() || packed[tensor].numel() == 0) return nullptr;
  return static_cast<const uint8_t*>(packed[tensor].const_data_ptr()) + first / 8;
}

std::vector<SweepPiece> sweep_pieces(const Tensors& weights) {
  std::vector<SweepPiece> pieces;
  for (size_t t = 0; t < weights.size(); ++t) {
    const int64_t n = weights[t].numel();
    for (int64_t first = 0; first < n; first += kSweepChunk)
      pieces.push_back({static_cast<int64_t>(t), first, n - first < kSweepChunk ? n - first : kSweepChunk});
  }
  return pieces;
}

bool sweep_observe_(Tensors weights, Tensors masks, Ints scopes, Tensor coefficients, Tensor brackets,
                    Tensor statistics, Tensor candidates) {
  const SweepLists lists{std::move(weights), {}, {}, std::move(masks), {}, std::move(scopes)};
  const Tensors grads;
  const Sweep sweep{lists, grads, coefficients, brackets, statistics, candidates};
  if (!sweep.plain()) return false;
  SweepRule rule{};
  rule.kind = RuleKind::observe;
  sweep.run("none", {rule});
  return true;
}

SweepSums magnitude_sums(const Tensors& weights, double s) {
  constexpr double kNever = std::numeric_limits<double>::infinity();
  const SweepScope scope{0, 0, s, kNever, kNever};
  SweepRule rule{};
  rule.kind = RuleKind::observe;
  const std::vector<SweepPiece> pieces = sweep_pieces(weights);
  std::vector<SweepSums> sums(pieces.size());
  const auto chunk_kernel = SPARSE_OPS_DISPATCH(sweep_chunk);
  parallel_pieces(pieces, [&](int64_t begin, int64_t end) {
    double unused[17];
    for (int64_t p = begin; p < end; ++p) {
      const auto [t, first, n] = pieces[p];
      SweepChunk chunk{};
      chunk.n = n;
      chunk.w = operand_at(operand(weights[t]), first);
      chunk_kernel(chunk, rule, &scope, sums[p], unused);
    }
  });
  SweepSums total{};
  for (const SweepSums& sum : sums) {
    total.n += sum.n;
    total.t0 += sum.t0;
    total.t1 += sum.t1;
    total.t2 += sum.t2;
  }
  return total;
}

}  // namespace sparse_ops
