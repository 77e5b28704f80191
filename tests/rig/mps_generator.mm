// at::MPSGeneratorImpl: its numbers come from a CPU generator that mirrors it.
#include "mps_generator.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/mps/MPSGeneratorImpl.h>

#include <mutex>
#include <unordered_map>

namespace {

std::mutex mutex;

std::unordered_map<const c10::GeneratorImpl*, at::Generator>& mirrors() {
  static auto* all = new std::unordered_map<const c10::GeneratorImpl*, at::Generator>;
  return *all;
}

void set_mirror(const c10::GeneratorImpl* generator, at::Generator mirror) {
  std::lock_guard<std::mutex> lock(mutex);
  mirrors().insert_or_assign(generator, std::move(mirror));
}

} // namespace

at::Generator& rig::mirror_of(const c10::GeneratorImpl* generator) {
  std::lock_guard<std::mutex> lock(mutex);
  return mirrors().at(generator);
}

namespace at {

// A new generator replaces the mirror of a dead one at the same address.
MPSGeneratorImpl::MPSGeneratorImpl(uint64_t seed)
    : GeneratorImpl{Device(DeviceType::MPS, 0), DispatchKeySet(c10::DispatchKey::MPS)},
      data_({.seed = seed}),
      engine_(seed, 0, 0) {
  set_mirror(this, at::detail::createCPUGenerator(seed));
}

void MPSGeneratorImpl::set_current_seed(uint64_t seed) {
  data_.seed = seed;
  rig::mirror_of(this).set_current_seed(seed);
}

uint64_t MPSGeneratorImpl::current_seed() const {
  return data_.seed;
}

uint64_t MPSGeneratorImpl::seed() {
  const auto drawn = c10::detail::getNonDeterministicRandom();
  set_current_seed(drawn);
  return drawn;
}

void MPSGeneratorImpl::set_state(const c10::TensorImpl& state) {
  rig::mirror_of(this).unsafeGetGeneratorImpl()->set_state(state);
}

c10::intrusive_ptr<c10::TensorImpl> MPSGeneratorImpl::get_state() const {
  return rig::mirror_of(this).unsafeGetGeneratorImpl()->get_state();
}

void MPSGeneratorImpl::set_offset(uint64_t) {
  TORCH_CHECK(false, "the offset of an mps generator cannot be set");
}

uint64_t MPSGeneratorImpl::get_offset() const {
  TORCH_CHECK(false, "an mps generator has no offset");
}

std::shared_ptr<MPSGeneratorImpl> MPSGeneratorImpl::clone() const {
  return std::shared_ptr<MPSGeneratorImpl>(clone_impl());
}

MPSGeneratorImpl* MPSGeneratorImpl::clone_impl() const {
  auto* copy = new MPSGeneratorImpl(data_.seed);
  set_mirror(copy, rig::mirror_of(this).clone());
  return copy;
}

namespace mps::detail {

const Generator& getDefaultMPSGenerator() {
  static const auto* one = new Generator(createMPSGenerator(c10::detail::getNonDeterministicRandom()));
  return *one;
}

Generator createMPSGenerator(uint64_t seed) {
  return make_generator<MPSGeneratorImpl>(seed);
}

} // namespace mps::detail
} // namespace at
